//! Just enough of JSON to look into a report that we wrote ourselves.

/// The members of an object, keys without their quotes, values as they are written. `None` if the
/// text is not an object.
pub fn members(object: &str) -> Option<Vec<(&str, &str)>> {
    let inside = object.trim().strip_prefix('{')?.strip_suffix('}')?;
    if inside.trim().is_empty() {
        return Some(Vec::new());
    }
    let mut members = Vec::new();
    let mut rest = inside;
    loop {
        let colon = outermost(rest, b':')?;
        let value = &rest[colon + 1..];
        let end = outermost(value, b',');
        let key = rest[..colon].trim().strip_prefix('"')?.strip_suffix('"')?;
        members.push((key, value[..end.unwrap_or(value.len())].trim()));
        match end {
            Some(comma) => rest = &value[comma + 1..],
            None => return Some(members),
        }
    }
}

/// The value of one member.
pub fn member<'a>(object: &'a str, key: &str) -> Result<&'a str, String> {
    let all = members(object).ok_or("the report is not a JSON object")?;
    let found = all.iter().find(|(name, _)| *name == key);
    found.map(|(_, value)| *value).ok_or(format!("the report has no \"{key}\""))
}

/// Where a byte first stands outside of strings, arrays and objects.
fn outermost(text: &str, wanted: u8) -> Option<usize> {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            _ if byte == wanted && depth == 0 => return Some(i),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_told_apart_whatever_they_hold() {
        let report = r#"{"a":1, "b":{"c":"},\""},"d":["}",{"e":2}],"f":"x:,"}"#;
        let all = [("a", "1"), ("b", r#"{"c":"},\""}"#), ("d", r#"["}",{"e":2}]"#), ("f", r#""x:,""#)];
        assert_eq!(members(report).unwrap(), all);
        assert_eq!(members("{ }"), Some(vec![]));
        assert_eq!(member(report, "a").unwrap(), "1");
        assert!(member(report, "c").is_err());
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "{", "[1]", "{1}", r#"{"a"}"#, r#"{a:1}"#] {
            assert_eq!(members(text), None, "{text}");
        }
    }
}
