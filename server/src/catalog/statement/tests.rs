//! Commands taken apart, and the many that are refused.

use super::{Statement, Verb, parse};

fn parsed(sql: &str) -> Statement {
    parse(sql).unwrap_or_else(|fault| panic!("{sql} is refused: {}", fault.message))
}

fn parameters(sql: &str) -> Vec<String> {
    parsed(sql).references.into_iter().map(|reference| reference.name).collect()
}

/// The message, and the text that the fault points at.
fn refused(sql: &str) -> (String, String) {
    let fault = parse(sql).err().unwrap_or_else(|| panic!("{sql} passes"));
    (fault.message, sql[fault.offset..].to_owned())
}

#[test]
fn the_five_verbs_pass() {
    for (sql, verb, returning, read_only) in [
        ("select 1", Verb::Select, false, true),
        ("(select 1) union (select 2)", Verb::Select, false, true),
        ("SELECT a FROM t FOR UPDATE", Verb::Select, false, false),
        ("select a from t for no key update", Verb::Select, false, false),
        ("select a from t for share", Verb::Select, false, false),
        ("select a from t for key share skip locked", Verb::Select, false, false),
        ("select substring(a for key) from t", Verb::Select, false, true),
        ("insert into t values (1)", Verb::Insert, false, false),
        ("insert into t values (1) Returning a;", Verb::Insert, true, false),
        ("update t set a = (select 1)", Verb::Update, false, false),
        ("update t set a = 1 returning *", Verb::Update, true, false),
        ("update t set returning_at = 1, x = t.returning", Verb::Update, false, false),
        ("delete from t -- returning\n", Verb::Delete, false, false),
        ("merge into t using s on true when matched then delete", Verb::Merge, false, false),
        ("with a as (select 1) select * from a", Verb::Select, false, true),
        ("with a as (values (1)), b as (table a) select * from b", Verb::Select, false, true),
        ("with a as (delete from t returning *) select * from a", Verb::Select, false, false),
        ("with a as (with b as (select 1) delete from t returning *) select 1", Verb::Select, false, false),
        ("with a as (with b as (delete from t returning *) select 1) select 1", Verb::Select, false, false),
        ("with a as (select 1) insert into t select * from a", Verb::Insert, false, false),
        ("with a as (delete from t returning *) insert into u select * from a returning x", Verb::Insert, true, false),
    ] {
        let statement = parsed(sql);
        let seen = (statement.verb, statement.returning, statement.read_only);
        assert_eq!(seen, (verb, returning, read_only), "for {sql}");
    }
}

#[test]
fn every_other_statement_is_refused() {
    for statement in [
        "call do_it()",
        "do $$ begin end $$",
        "copy t from stdin",
        "create table t (a int)",
        "alter table t add b int",
        "drop table t",
        "truncate t",
        "set role admin",
        "reset all",
        "show all",
        "begin",
        "commit",
        "rollback",
        "savepoint a",
        "explain analyze delete from t",
        "prepare p as select 1",
        "execute p",
        "deallocate p",
        "declare c cursor for select 1",
        "fetch c",
        "listen a",
        "notify a",
        "lock table t",
        "vacuum",
        "analyze",
        "refresh materialized view v",
        "grant all on t to public",
        "comment on table t is 'x'",
        "values (1)",
        "table t",
        "load 'x'",
        "discard all",
        "security label on table t is 'x'",
    ] {
        let word = statement.split(' ').next().expect("it has a first word");
        for (sql, at) in [
            (statement.to_owned(), statement.to_owned()),
            (format!("with a as (select 1) {statement}"), statement.to_owned()),
        ] {
            assert_eq!(refused(&sql), (format!("{} is refused", word.to_uppercase()), at), "for {sql}");
        }
    }
    for statement in ["call do_it()", "do $$ $$", "copy t to stdout", "create table t (a int)", "explain select 1"] {
        let sql = format!("with a as ({statement}) select 1");
        assert!(refused(&sql).0.ends_with(" is refused"), "for {sql}");
    }
}

#[test]
fn the_fault_says_what_and_where() {
    for (sql, message, at) in [
        ("", "the statement is missing", ""),
        (" -- nothing\n", "the statement is missing", "\n"),
        ("with a as (select 1)", "the statement is missing", ""),
        ("select 1; select 2", "a second statement", "select 2"),
        ("select 1;; delete from t;", "a second statement", "; delete from t;"),
        ("select $1", "a parameter by number", "$1"),
        ("select 1 into t", "SELECT … INTO makes a table, which is refused", "into t"),
        ("with a as (select 1 into t) select 1", "SELECT … INTO makes a table, which is refused", "into t) select 1"),
        ("select (1", "this `(` is never closed", "(1"),
        ("select (1]", "`]` without its `[`", "]"),
        ("select 1)", "`)` without its `(`", ")"),
        ("select 'a", "this string is never closed", "'a"),
        ("'a'", "a statement cannot begin with `'a'`", "'a'"),
        ("with a (select 1) select 1", "expected `name as (…)` in the WITH list", "select 1"),
        ("with 'a' as (select 1) select 1", "expected `name as (…)` in the WITH list", "'a' as (select 1) select 1"),
        ("with", "expected `name as (…)` in the WITH list", ""),
        (
            "with outboxd_op as (select 1) select 1",
            "CTE names beginning with `outboxd_` are reserved",
            "outboxd_op as (select 1) select 1",
        ),
        (
            "with \"outboxd_x\" as (select 1) select 1",
            "CTE names beginning with `outboxd_` are reserved",
            "\"outboxd_x\" as (select 1) select 1",
        ),
        ("select 'a\0'; drop table t", "the character NUL", "\0'; drop table t"),
        ("select :a$b", "bad parameter name", ":a$b"),
    ] {
        let (seen, place) = refused(sql);
        assert_eq!((seen.as_str(), place.as_str()), (message, at), "for {sql}");
    }
}

#[test]
fn into_is_refused_only_where_it_makes_a_table() {
    for sql in ["insert into t values (1)", "select a.into from a", "select 1 as into", "select \"into\" from a"] {
        parsed(sql);
    }
}

#[test]
fn parameters_are_found_where_postgres_sees_sql() {
    for (sql, names) in [
        ("select :a, :b, :a", vec!["a", "b", "a"]),
        ("select 'a:b', $$:x$$, a::text, arr[1:2] /* :x */, E'\\':x' -- :y", vec![]),
        ("select :a::text::int", vec!["a"]),
        ("select a=:a, b->>:b, c@>:c, d<:d", vec!["a", "b", "c", "d"]),
        ("select f(x => :a, y := :b)", vec!["a", "b"]),
        ("select arr[:a], arr[:a:3], arr[1: :b], arr[(:a):x]", vec!["a", "a", "b", "a"]),
        ("select arr[i:j], arr[2:n], arr[f(1):n], arr[a[1]:n]", vec![]),
        ("select arr[case when x then :a else :b end + :c]", vec!["a", "b", "c"]),
        ("select :A, :_b, :c1", vec!["A", "_b", "c1"]),
        ("select 1 limit :n", vec!["n"]),
    ] {
        assert_eq!(parameters(sql), names, "in {sql}");
    }
}

#[test]
fn the_with_list_is_split_from_the_main_statement() {
    for (sql, list, recursive, main) in [
        ("with a as (select 1) select 2 ;", "a as (select 1)", false, "select 2"),
        (
            "WITH RECURSIVE a(n) AS NOT MATERIALIZED (select 1)\nselect 2 -- end",
            "a(n) AS NOT MATERIALIZED (select 1)",
            true,
            "select 2",
        ),
        (
            "with a as (select ')'), b as materialized (select 2) /* x */ update t set c = 1",
            "a as (select ')'), b as materialized (select 2)",
            false,
            "update t set c = 1",
        ),
        (
            "with recursive a as (select 1) search depth first by x, y set o cycle x, y set c to 1 default 0 using p, b as (select 2) (select 3)",
            "a as (select 1) search depth first by x, y set o cycle x, y set c to 1 default 0 using p, b as (select 2)",
            true,
            "(select 3)",
        ),
    ] {
        let statement = parsed(sql);
        assert_eq!(&sql[statement.with_list.expect("it has one")], list);
        assert_eq!((&sql[statement.main], statement.recursive), (main, recursive));
    }
}
