//! Tokens against what Postgres's own scanner makes of the same text.

use super::{Kind, Unclosed, tokens};

/// The tokens as their texts.
fn texts(sql: &str) -> Vec<&str> {
    tokens(sql).expect("all quotes are closed").iter().map(|token| &sql[token.start..token.end]).collect()
}

fn kinds(sql: &str) -> Vec<Kind> {
    tokens(sql).expect("all quotes are closed").iter().map(|token| token.kind).collect()
}

#[test]
fn strings_of_every_form_are_one_token() {
    for string in [
        "'a:b'",
        "'it''s :x'",
        r"'ends in a backslash\'",
        r"E'\':x'",
        r"e'a''b\\'",
        "E'a'\n  'b\\':x'",
        "E'a' -- half\n 'b\\':x'",
        "B'01'",
        "X'ff'",
        "N'text'",
        r"U&'d\0061t:a'",
        "$$:x$$",
        "$$ $ $x $$",
        "$tag$ $$:x$$ $tag $tag$",
        "$täg$ ; $täg$",
    ] {
        let sql = format!("select {string}, 1");
        assert_eq!(texts(&sql), ["select", string, ",", "1"], "in {sql}");
        assert_eq!(kinds(&sql)[1], Kind::String, "in {sql}");
    }
}

#[test]
fn a_string_goes_on_only_behind_a_line_break() {
    assert_eq!(texts("'a' 'b'"), ["'a'", "'b'"]);
    assert_eq!(texts("'a'\n'b'"), ["'a'\n'b'"]);
    // Without E, the backslash ends nothing and escapes nothing.
    assert_eq!(texts("'a\\'\n'b\\' :x"), ["'a\\'\n'b\\'", ":", "x"]);
}

#[test]
fn quoted_names_may_hold_anything() {
    assert_eq!(texts(r#""a "" :b" u&"c:d""#), [r#""a "" :b""#, r#"u&"c:d""#]);
    assert_eq!(kinds(r#""a" u&"b" u"#), [Kind::QuotedName, Kind::QuotedName, Kind::Word]);
}

#[test]
fn comments_are_left_out() {
    assert_eq!(texts("a /* :x */ b -- it's :y\nc"), ["a", "b", "c"]);
    assert_eq!(texts("a /* /* nested */ ' */ b"), ["a", "b"]);
    assert_eq!(texts("a--b\r:c"), ["a", ":", "c"]);
}

#[test]
fn an_operator_ends_where_a_comment_begins() {
    assert_eq!(texts("a =-- don't\n:x"), ["a", "=", ":", "x"]);
    assert_eq!(texts("a @>/* ' */:x"), ["a", "@>", ":", "x"]);
    assert_eq!(texts("a->>:x"), ["a", "->>", ":", "x"]);
    assert_eq!(texts("a ? :x"), ["a", "?", ":", "x"]);
}

#[test]
fn colons_are_told_apart() {
    assert_eq!(texts("a::text :b f(c:=1) d[1:2]").join(" "), "a :: text : b f ( c := 1 ) d [ 1 : 2 ]");
    assert_eq!(texts(":a::uuid"), [":", "a", "::", "uuid"]);
}

#[test]
fn dollars_are_told_apart() {
    assert_eq!(kinds("$1 a$b$ $x"), [Kind::Placeholder, Kind::Word, Kind::Mark('$'), Kind::Word]);
    assert_eq!(texts("$1$$a$$"), ["$1", "$$a$$"]);
}

#[test]
fn what_is_never_closed_is_said_with_its_place() {
    for (sql, what) in [
        ("a 'b", "string"),
        ("a E'b\\'", "string"),
        ("a \"b", "quoted name"),
        ("a /* /* */", "comment"),
        ("a $x$ $y$", "dollar-quoted string"),
    ] {
        assert_eq!(tokens(sql), Err(Unclosed { start: 2, what }), "in {sql}");
    }
}

#[test]
fn numbers_end_before_a_colon() {
    assert_eq!(texts("1.5:2 .5 1e3 0x1f"), ["1.5", ":", "2", ".5", "1e3", "0x1f"]);
}
