//! Where others listen, as it is written.

/// Reads `HOST:PORT`.
///
/// # Errors
/// What was expected.
pub fn host_and_port(text: &str) -> Result<String, String> {
    let wrong = || "expected HOST:PORT, such as roundhouse-1:8000".to_owned();
    let (host, port) = text.trim().rsplit_once(':').ok_or_else(wrong)?;
    let is_host = !host.is_empty() && !host.contains(['/', '@', ' ']);
    match port.parse::<u16>() {
        Ok(1..) if is_host => Ok(text.trim().to_owned()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_a_host_and_a_port() {
        for text in ["a:1", "10.0.0.1:8000", "[::1]:8000", "roundhouse-pods.models.svc:8000"] {
            assert_eq!(host_and_port(text).unwrap(), text);
        }
        for text in ["", "a", "a:", ":1", "a:0", "a:70000", "http://a:1", "a/b:1"] {
            assert!(host_and_port(text).unwrap_err().contains("HOST:PORT"), "{text}");
        }
    }
}
