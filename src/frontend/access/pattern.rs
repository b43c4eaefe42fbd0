//! Patterns of names: `*` for any run of characters, `?` for one.

/// Whether the whole name is as the pattern says. Takes at most the product of both lengths.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern.chars(), name.chars());
    // Behind the last `*`: the rest of the pattern, and from where on the name is tried against it.
    let mut retry = None;
    loop {
        let (mut pattern_after, mut name_after) = (pattern.clone(), name.clone());
        match (pattern_after.next(), name_after.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                retry = Some((pattern_after.clone(), name.clone()));
                pattern = pattern_after;
            }
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                (pattern, name) = (pattern_after, name_after);
            }
            _ => {
                let Some((again, from)) = &mut retry else { return false };
                if from.next().is_none() {
                    return false;
                }
                (pattern, name) = (again.clone(), from.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, tried out in every way.
    fn by_definition(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=name.len()).any(|taken| by_definition(rest, &name[taken..])),
            (['?', rest @ ..], [_, name @ ..]) => by_definition(rest, name),
            ([one, rest @ ..], [same, name @ ..]) => one == same && by_definition(rest, name),
            _ => false,
        }
    }

    #[test]
    fn a_star_crosses_slashes_and_a_question_mark_is_one_character() {
        for (pattern, name) in [
            ("*", ""),
            ("company_a/*", "company_a/x/y.tar.gz"),
            ("a?c", "aöc"),
            ("*.tar.gz", "a/b.tar.gz"),
            ("a*b*c", "abbc"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("company_a/*", "company_ab/x"),
            ("company_a/*", "company_a"),
            ("a?c", "ac"),
            ("a", "A"),
            ("a*b", "abc"),
            ("", "a"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    proptest! {
        #[test]
        fn the_way_that_is_fast_says_what_the_definition_says(pattern in "[ab/*?]{0,8}", name in "[ab/*]{0,8}") {
            let (wanted, found): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
            prop_assert_eq!(matches(&pattern, &name), by_definition(&wanted, &found));
        }
    }
}
