//! Catalogs that are refused, each with the place of what is wrong.

use outbox_server::catalog::{Catalog, Error};
use sqlx::{Executor as _, PgConnection};

use super::{Folder, load, shop};

/// The problems of one command with this statement, without their folder.
async fn problems(statement: &str, conn: &mut PgConnection) -> Vec<String> {
    match load(&format!("-- name: a\n{statement}"), conn).await {
        Err(Error::Files(problems)) => problems.iter().map(|problem| without_folder(&problem.to_string())).collect(),
        Err(error) => panic!("{statement}: not a problem of the file: {error}"),
        Ok(_) => panic!("{statement} passes"),
    }
}

fn without_folder(problem: &str) -> String {
    let start = problem.find("a.sql:").expect("the file is named");
    problem[start..].to_owned()
}

#[tokio::test]
async fn what_postgres_refuses_is_told_with_file_line_and_column() {
    let (_database, mut conn) = shop().await;
    for (statement, expected) in [
        ("select 1\nfrm shop.users", "a.sql:3:5: syntax error at or near \"shop\""),
        (
            "selec 1",
            "a.sql:2:1: SELEC is refused; a command is one SELECT, INSERT, UPDATE, DELETE or MERGE, with CTEs if need be",
        ),
        ("select wrong from shop.users", "a.sql:2:8: column \"wrong\" does not exist"),
        (
            "update shop.users\n  set vists = :v where id = :id",
            "a.sql:3:7: column \"vists\" of relation \"users\" does not exist",
        ),
        ("select :a as ä,\n 'ü', wrong from shop.users", "a.sql:3:7: column \"wrong\" does not exist"),
        ("select 'üü', :a, wrong from shop.users", "a.sql:2:18: column \"wrong\" does not exist"),
        // Wrong only in the form that runs.
        (
            "insert into shop.ruled values (:a)",
            "a.sql:2:1: DO ALSO rules are not supported for data-modifying statements in WITH",
        ),
        ("select 1, nowhere.f()", "a.sql:2:11: schema \"nowhere\" does not exist"),
        (
            "-- access: read_only\nupdate shop.users set visits = 1",
            "a.sql:3:1: a read_only command changes or locks rows; declare it `access: read_write`, or make it a plain SELECT",
        ),
        ("-- access: both\nselect 1", "a.sql:2:1: bad access `both`; write read_only or read_write"),
        ("select * from nowhere", "a.sql:2:15: relation \"nowhere\" does not exist"),
        (
            "select 1 where\n :a is null",
            "a.sql:3:2: could not determine data type of parameter :a; write its type out, as in `:name::uuid`",
        ),
        (
            "select 1 where :a = 1 and\n  :a = 'x'::text",
            "a.sql:3:6: operator does not exist: integer = text; No operator matches the given name and argument types. You might need to add explicit type casts.",
        ),
        (
            "select (:a)[1]",
            "a.sql:2:9: cannot subscript type unknown because it does not support subscripting; write its type out, as in `:name::uuid`",
        ),
        (
            "insert into shop.users (id, tenant, age) values (:a, :namespace, :a)",
            "a.sql:2:66: inconsistent types deduced for parameter :a (text versus smallint); write its type out, as in `:name::uuid`",
        ),
        (
            "select id, age as id from shop.users",
            "a.sql:2:1: two columns are named `id`; give one of them an alias with AS",
        ),
        (
            "call now()",
            "a.sql:2:1: CALL is refused; a command is one SELECT, INSERT, UPDATE, DELETE or MERGE, with CTEs if need be",
        ),
        ("select 1;\ndelete from shop.users", "a.sql:3:1: a second statement; give it a header of its own"),
        ("select 'a\n", "a.sql:2:8: this string is never closed"),
        (
            "with a as (merge into shop.tree using shop.tree s on true when matched then delete) select 1",
            "a.sql:2:6: MERGE not supported in WITH query",
        ),
        (
            "select * from shop.users\nwhere id = :a and address = 'x'",
            "a.sql:3:29: invalid input syntax for type inet: \"x\"",
        ),
        (
            "with a as (select 1), a as (select 2) select 1",
            "a.sql:2:23: WITH query name \"a\" specified more than once",
        ),
        (
            "select\n\n   f(:a)",
            "a.sql:4:4: function f(unknown) does not exist; No function matches the given name and argument types. You might need to add explicit type casts.",
        ),
    ] {
        assert_eq!(problems(statement, &mut conn).await, [expected], "for {statement}");
    }
}

#[tokio::test]
async fn all_problems_of_all_files_are_told_together() {
    let (_database, mut conn) = shop().await;
    let folder = Folder::new(&[
        ("b.sql", "-- name: fine\nselect 1\n-- name: twice\nselect 2"),
        ("a.sql", "-- name: twice\n-- expect: many\nselect wrong"),
        ("c.txt", "not SQL"),
    ]);
    let error = Catalog::load(&folder.0, &mut conn).await.expect_err("three places are wrong").to_string();
    let at = folder.0.display();
    assert_eq!(
        error.lines().collect::<Vec<_>>(),
        [
            format!(
                "{at}/a.sql:2:1: bad expectation `many`; write one, at_most_one, at_least_one, any, or a number of rows"
            ),
            format!("{at}/a.sql:3:8: column \"wrong\" does not exist"),
            format!(
                "{at}/b.sql:3:1: command `twice` is already declared at {at}/a.sql:1:1; give one of them another name"
            ),
        ]
    );
}

#[tokio::test]
async fn a_folder_or_file_that_cannot_be_read_is_named() {
    let (_database, mut conn) = shop().await;
    let folder = Folder::new(&[]);
    assert_eq!(Catalog::load(&folder.0, &mut conn).await.expect("it may be empty").names().count(), 0);
    std::fs::write(folder.0.join("a.sql"), b"-- name: a\nselect '\xff'").expect("a file can be written");
    for path in [folder.0.join("a.sql"), folder.0.join("missing")] {
        let dir = if path.ends_with("missing") { &path } else { &folder.0 };
        let error = Catalog::load(dir, &mut conn).await.expect_err("it cannot be read").to_string();
        assert!(error.starts_with(&format!("cannot read {}: ", path.display())), "{error}");
    }
}

#[tokio::test]
async fn a_lost_database_is_no_problem_of_the_files() {
    let (database, mut conn) = shop().await;
    let mut other = database.connect().await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut conn).await.expect("it answers");
    sqlx::query("select pg_terminate_backend($1)").bind(pid).execute(&mut other).await.expect("it can be ended");
    let error = load("-- name: a\nselect 1", &mut conn).await.expect_err("the connection is gone");
    assert!(matches!(error, Error::Database(_)), "{error}");
}

#[tokio::test]
async fn a_refusing_server_is_no_problem_of_the_files() {
    let (_database, mut conn) = shop().await;
    let aborted = conn.execute("begin; select 1 / 0").await;
    assert!(aborted.is_err());
    let error = load("-- name: a\nselect 1", &mut conn).await.expect_err("the transaction is aborted");
    assert!(matches!(error, Error::Database(_)), "{error}");
}
