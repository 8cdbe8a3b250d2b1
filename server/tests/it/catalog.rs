//! Catalogs loaded from files by a real Postgres, and their commands run as the store runs them.

mod problems;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;

use outbox_harness::postgres::Database;
use outbox_server::catalog::{Catalog, Command, Error};
use outbox_server::model::value::Value;
use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _};

/// The session settings under which the store reads and writes texts.
const SESSION: &str = "set datestyle = 'ISO, YMD'; set intervalstyle = iso_8601; set bytea_output = hex;
    set timezone = 'UTC'; set extra_float_digits = 1";

const SHOP: &str = "
    create schema shop;
    create type shop.status as enum ('pending', 'active', 'it''s \"odd\"');
    create domain shop.email as text check (value like '%@%');
    create domain shop.sizes as int2[];
    create table shop.users (id text primary key, tenant text not null, email shop.email, status shop.status,
                             age int2, code char(5), address inet, visits int8 not null default 0);
    create table shop.tree (id int4 primary key, parent int4);
    create table shop.ruled (id int4);
    create rule also as on insert to shop.ruled do also delete from shop.tree";

/// A folder of catalog files, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("outbox-catalog-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).expect("a folder can be made");
        for (name, text) in files {
            std::fs::write(path.join(name), text).expect("a file can be written");
        }
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

async fn shop() -> (Database, PgConnection) {
    let database = Database::fresh().await;
    let mut conn = database.connect().await;
    conn.execute(SESSION).await.expect("the session can be set");
    conn.execute(SHOP).await.expect("the schema can be made");
    (database, conn)
}

async fn load(sql: &str, conn: &mut PgConnection) -> Result<Catalog, Error> {
    let folder = Folder::new(&[("a.sql", sql)]);
    Catalog::load(&folder.0, conn).await
}

async fn loaded(sql: &str, conn: &mut PgConnection) -> Catalog {
    load(sql, conn).await.unwrap_or_else(|error| panic!("the catalog is refused:\n{error}"))
}

/// Runs a command in the form that the store gives it.
async fn run(command: &Command, parameters: &[(&str, Value)], conn: &mut PgConnection) -> (i64, Vec<Vec<Value>>) {
    let parameters: BTreeMap<_, _> =
        parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let texts = command.bind("tenant-1", &parameters).unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(texts.len(), command.parameter_count);
    let with_list = command.with_list.as_ref().map_or_else(String::new, |list| format!("{list}, "));
    let recursive = if command.recursive { "recursive " } else { "" };
    let sql = format!(
        "with {recursive}{with_list}outboxd_op as ({}) select count(*), json_agg({})::text from outboxd_op as op",
        command.main,
        command.row_expression(),
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for text in texts {
        query = query.bind(text);
    }
    let row = query.fetch_one(conn).await.unwrap_or_else(|error| panic!("{}: {error}", command.name));
    let rows: Option<String> = row.get(1);
    let rows: Vec<Vec<Option<String>>> =
        rows.map_or_else(Vec::new, |rows| serde_json::from_str(&rows).expect("rows are arrays of texts"));
    let read = |row: Vec<Option<String>>| {
        assert_eq!(row.len(), command.columns.len());
        let values = row.iter().zip(&command.columns);
        values
            .map(|(text, column)| Value::from_sql_text(text.as_deref(), &column.ty).expect("it can be read"))
            .collect()
    };
    (row.get(0), rows.into_iter().map(read).collect())
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn types(command: &Command) -> (Vec<String>, Vec<String>) {
    let parameters = command.parameters.iter().map(|parameter| format!("{} {}", parameter.name, parameter.ty));
    let columns = command.columns.iter().map(|column| format!("{} {}", column.name, column.ty));
    (parameters.collect(), columns.collect())
}

#[tokio::test]
async fn the_sample_catalog_loads_and_runs() {
    let (_database, mut conn) = shop().await;
    let deploy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/catalog");
    let schema = std::fs::read_to_string(deploy.join("schema.psql")).expect("the sample schema is there");
    conn.execute(AssertSqlSafe(schema)).await.expect("the sample schema can be made");
    let catalog = Catalog::load(&deploy, &mut conn).await.expect("the sample catalog loads");
    assert_eq!(catalog.names().collect::<Vec<_>>(), ["activate_user", "create_user", "find_user", "place_order"]);
    assert_eq!(catalog.suggest("activate_usr"), Some("activate_user"));

    let place_order = catalog.get("place_order").expect("it is declared");
    let (parameters, columns) = types(place_order);
    assert_eq!(parameters, ["order_id uuid", "user_id text", "total numeric"]);
    assert_eq!(columns, ["id uuid", "user_id text", "total numeric", "placed_at timestamptz"]);
    let order_id = Value::Uuid("0190163d-8694-739b-aea5-966c26f8ad91".to_owned());
    let total = Value::Numeric("12.50".to_owned());
    let parameters = [("order_id", order_id.clone()), ("user_id", text("user-7")), ("total", total.clone())];
    let (count, rows) = run(place_order, &parameters, &mut conn).await;
    assert_eq!((count, &rows[0][..3]), (1, &[order_id, text("user-7"), total][..]));
}

#[tokio::test]
async fn types_are_inferred_from_the_schema_and_seen_through_domains() {
    let (_database, mut conn) = shop().await;
    let catalog = loaded(
        "-- name: create
         -- expect: one
         -- Creates a user.
         insert into shop.users (id, tenant, email, status, age, code, address)
         values (:id, :namespace, :email, :status, :age, :code, :address)
         returning id, tenant, email, status, age, code, address, :sizes::shop.sizes as sizes,
                   array[email] as emails, array[status] as statuses;
         -- the end
         -- name: count
         select count(*) as n, max(:namespace) as tenant from shop.users where tenant = :namespace and id = any(:ids)",
        &mut conn,
    )
    .await;
    let create = catalog.get("create").expect("it is declared");
    let (parameters, columns) = types(create);
    assert_eq!(
        parameters,
        ["id text", "email text", "status shop.status", "age int2", "code bpchar", "address inet", "sizes int2[]"]
    );
    assert_eq!(
        columns,
        [
            "id text",
            "tenant text",
            "email text",
            "status shop.status",
            "age int2",
            "code bpchar",
            "address inet",
            "sizes int2[]",
            "emails text[]",
            "statuses shop.status[]"
        ]
    );
    assert_eq!((create.namespace_position, create.parameter_count), (Some(1), 8));
    assert_eq!((create.expect.min, create.expect.max, create.description.as_str()), (1, 1, "Creates a user."));
    let sizes = Value::Array(vec![Value::Int(1), Value::Null]);
    let parameters = [
        ("id", text("u")),
        ("email", text("a@b")),
        ("status", text("it's \"odd\"")),
        ("age", Value::Int(7)),
        ("code", text("ab")),
        ("address", text("10.0.0.1")),
        ("sizes", sizes.clone()),
    ];
    // Every type in a cast is written with its schema, so the search path does not matter.
    conn.execute("set search_path = pg_catalog").await.expect("the path can be set");
    let (count, rows) = run(create, &parameters, &mut conn).await;
    let odd = text("it's \"odd\"");
    assert_eq!(count, 1);
    assert_eq!(
        rows[0],
        [
            text("u"),
            text("tenant-1"),
            text("a@b"),
            odd.clone(),
            Value::Int(7),
            text("ab   "),
            text("10.0.0.1"),
            sizes,
            Value::Array(vec![text("a@b")]),
            Value::Array(vec![odd])
        ]
    );
    let ids = Value::Array(vec![text("u"), text("v")]);
    let (_, rows) = run(catalog.get("count").expect("it is declared"), &[("ids", ids)], &mut conn).await;
    assert_eq!(rows, [[Value::Int(1), text("tenant-1")]]);
}

#[tokio::test]
async fn every_form_of_statement_runs_in_the_stores_frame() {
    let (_database, mut conn) = shop().await;
    let catalog = loaded(
        "-- name: insert
         insert into shop.tree (id, parent) select n, :parent from generate_series(1, :n) n -- no returning
         -- name: update
         update shop.tree set parent = (:parents::int4[])[:at] where id = :id
         -- name: slice
         -- access: read_only
         select (:items::int4[])[2:3] as both, (:items::int4[])[:at:] as tail
         -- name: delete
         delete from shop.tree where id = :id
         -- name: move
         with gone as (delete from shop.tree where id <= :id returning id, parent),
              back as (insert into shop.tree select id + 100, parent from gone returning id)
         select id from back order by id
         -- name: climb
         -- access: read_only
         with recursive up(id, parent) as (
             select id, parent from shop.tree where id = :id
             union all select t.id, t.parent from shop.tree t join up on t.id = up.parent
         ) search breadth first by id set depth
         select id from up order by depth
         -- name: lock
         select id from shop.tree where id = :id for update
         -- name: either
         -- access: read_only
         (select 1 as n) union (select :n) order by n /* :x */
         -- name: wide
         -- access: read_only
         select 'a:b' as \"a:b\", $$:x$$ as \"quote \"\"\", E'\\':x' as e, 1::text as t, pg_notify('x', 'y')
         -- name: merge
         merge into shop.tree t using (select :id::int4 as id) s on t.id = s.id
         when matched then update set parent = :parent when not matched then insert values (s.id, :parent)",
        &mut conn,
    )
    .await;
    let command = |name: &str| catalog.get(name).expect("it is declared").as_ref();
    let read_only: Vec<&str> = catalog.names().filter(|name| command(name).read_only).collect();
    assert_eq!(read_only, ["climb", "either", "slice", "wide"]);

    let parameters = [("parent", Value::Int(0)), ("n", Value::Int(4))];
    assert_eq!(run(command("insert"), &parameters, &mut conn).await, (4, vec![vec![]; 4]));
    let parents = Value::Array(vec![Value::Int(8), Value::Int(1)]);
    let parameters = [("parents", parents), ("at", Value::Int(2)), ("id", Value::Int(2))];
    assert_eq!(run(command("update"), &parameters, &mut conn).await.0, 1);
    let (_, rows) = run(command("climb"), &[("id", Value::Int(2))], &mut conn).await;
    assert_eq!(rows, [[Value::Int(2)], [Value::Int(1)]]);
    let ints = |items: &[i64]| Value::Array(items.iter().copied().map(Value::Int).collect());
    let (_, rows) = run(command("slice"), &[("items", ints(&[1, 2, 3, 4])), ("at", Value::Int(4))], &mut conn).await;
    assert_eq!(rows, [[ints(&[2, 3]), ints(&[4])]]);
    assert_eq!(run(command("delete"), &[("id", Value::Int(9))], &mut conn).await, (0, vec![]));
    assert_eq!(run(command("lock"), &[("id", Value::Int(4))], &mut conn).await.0, 1);
    let (_, rows) = run(command("move"), &[("id", Value::Int(2))], &mut conn).await;
    assert_eq!(rows, [[Value::Int(101)], [Value::Int(102)]]);
    let (_, rows) = run(command("either"), &[("n", Value::Null)], &mut conn).await;
    assert_eq!(rows, [[Value::Int(1)], [Value::Null]]);
    let (_, rows) = run(command("wide"), &[], &mut conn).await;
    assert_eq!(rows, [[text("a:b"), text(":x"), text("':x"), text("1"), text("")]]);

    let merge = command("merge");
    assert!(!merge.wrappable && merge.columns.is_empty() && !merge.read_only);
    assert_eq!(command("insert").direct().matches("with").count(), 0);
    for (id, changed) in [(3, 1), (77, 1)] {
        let parameters = BTreeMap::from([("id".to_owned(), Value::Int(id)), ("parent".to_owned(), Value::Int(5))]);
        let texts = merge.bind("tenant-1", &parameters).expect("they fit");
        let mut query = sqlx::query(AssertSqlSafe(merge.direct()));
        for text in texts {
            query = query.bind(text);
        }
        assert_eq!(query.execute(&mut conn).await.expect("it runs").rows_affected(), changed);
    }
    let parents: Vec<i32> = sqlx::query_scalar("select parent from shop.tree where id in (3, 77)")
        .fetch_all(&mut conn)
        .await
        .expect("it can be read");
    assert_eq!(parents, [5, 5]);
}

#[tokio::test]
async fn more_columns_than_a_function_has_arguments() {
    let (_database, mut conn) = shop().await;
    let columns: Vec<String> = (0..150).map(|n| format!("{n} as c{n}")).collect();
    let catalog = loaded(&format!("-- name: a\nselect {}", columns.join(", ")), &mut conn).await;
    let (_, rows) = run(catalog.get("a").expect("it is declared"), &[], &mut conn).await;
    assert_eq!(rows[0], (0..150).map(Value::Int).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_second_load_sees_a_changed_schema() {
    let (_database, mut conn) = shop().await;
    let sql = "-- name: a\nselect id from shop.tree where parent = :parent";
    let before = loaded(sql, &mut conn).await;
    conn.execute("alter table shop.tree alter parent type text, alter id type int8").await.expect("it can be changed");
    let after = loaded(sql, &mut conn).await;
    let types = [before, after].map(|catalog| types(catalog.get("a").expect("it is declared")));
    let expected = |parameter: &str, column: &str| (vec![parameter.to_owned()], vec![column.to_owned()]);
    assert_eq!(types, [expected("parent int4", "id int4"), expected("parent text", "id int8")]);
}
