//! Text into words as a shell splits them: blanks, quotes and backslashes, and nothing that is expanded.

use crate::error::{Error, Result};

/// The words of `text`. In single quotes everything stands for itself; in double quotes a backslash hides a `"`, a `\`,
/// a `$` or a backtick; elsewhere it hides any character. Two quotes with nothing in them are an empty word.
///
/// # Errors
/// `InvalidArgument` for a quote that is not closed, and for a backslash at the end.
pub(super) fn split(text: &str) -> Result<Vec<String>> {
    let (mut words, mut word) = (Vec::new(), None);
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_with(String::new);
        match character {
            '\'' => loop {
                match characters.next().ok_or_else(|| unclosed('\''))? {
                    '\'' => break,
                    inside => word.push(inside),
                }
            },
            '"' => loop {
                match characters.next().ok_or_else(|| unclosed('"'))? {
                    '"' => break,
                    '\\' => match characters.next().ok_or_else(|| unclosed('"'))? {
                        hidden @ ('"' | '\\' | '$' | '`') => word.push(hidden),
                        other => word.extend(['\\', other]),
                    },
                    inside => word.push(inside),
                }
            },
            '\\' => word.push(characters.next().ok_or_else(|| Error::invalid("a backslash at the end hides nothing"))?),
            other => word.push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn unclosed(quote: char) -> Error {
    Error::invalid(format!("a quote {quote} is not closed"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_end_at_blanks_outside_quotes() {
        let cases: [(&str, &[&str]); 8] = [
            ("", &[]),
            (" \t\n", &[]),
            ("--a 1  --b=2", &["--a", "1", "--b=2"]),
            ("--a 'two words' \"three 'of' them\"", &["--a", "two words", "three 'of' them"]),
            ("a''b '' \"\"", &["ab", "", ""]),
            (r"a\ b \'c", &["a b", "'c"]),
            (r#""\"\\\$\`\n" '\n'"#, &[r#""\$`\n"#, r"\n"]),
            ("--key=$HOME *", &["--key=$HOME", "*"]),
        ];
        for (text, words) in cases {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
    }

    #[test]
    fn what_is_left_open_is_refused() {
        for (text, cause) in [("'a", "quote '"), ("a \"b", "quote \""), ("\"a\\", "quote \""), ("a\\", "backslash")] {
            let error = split(text).unwrap_err().to_string();
            assert!(error.contains(cause), "{text}: {error}");
        }
    }

    /// A word as a careful person quotes it: single quotes around everything but single quotes.
    fn quoted(word: &str) -> String {
        format!("'{}'", word.replace('\'', r"'\''"))
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in prop::collection::vec(any::<String>(), 0..8), blank in "[ \t\n]{1,3}") {
            let text = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(&blank);
            prop_assert_eq!(split(&text).unwrap(), words);
        }

        #[test]
        fn plain_words_are_split_at_blanks_alone(text in r#"[^'"\\\s]{0,9}([ \t\n]+[^'"\\\s]{0,9}){0,5}"#) {
            let words = text.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
            prop_assert_eq!(split(&text).unwrap(), words);
        }

        #[test]
        fn no_text_is_too_odd(text in r#"[ab'"\\ $]{0,40}"#) {
            if let Ok(words) = split(&text) {
                prop_assert!(words.iter().map(String::len).sum::<usize>() <= text.len());
            }
        }
    }
}
