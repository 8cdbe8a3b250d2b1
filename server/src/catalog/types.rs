//! Looks types up in the database, by the numbers that a prepared statement gives.
//!
//! A type has two names here: the `SqlType` that says how its text is read, which sees through domains, and the name
//! that a cast needs, always with its schema so that no search path changes its meaning.

use std::collections::HashMap;

use sqlx::{PgConnection, Row};

use crate::model::value::SqlType;

/// A type as the database has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resolved {
    pub(super) ty: SqlType,
    /// What to write behind `::`.
    pub(super) cast: String,
}

/// The types looked up so far, by their oid.
#[derive(Default)]
pub(super) struct Types(HashMap<u32, Resolved>);

/// `int2vector` and `oidvector` have elements too, but are no arrays: their text has no braces.
const LOOK_UP: &str = "
    select t.typname::text as name, s.nspname = 'pg_catalog' as built_in, format('%I', t.typname) as quoted,
           format('%I.%I', s.nspname, t.typname) as qualified,
           case when t.typtype = 'd' then t.typbasetype::int8 end as base, e.oid::int8 as element
    from pg_catalog.pg_type t
    join pg_catalog.pg_namespace s on s.oid = t.typnamespace
    left join pg_catalog.pg_type e on e.oid = t.typelem and e.typarray = t.oid
    where t.oid = $1::int8::oid";

impl Types {
    /// The type of this oid.
    pub(super) async fn resolve(&mut self, oid: u32, conn: &mut PgConnection) -> Result<Resolved, sqlx::Error> {
        if let Some(resolved) = self.0.get(&oid) {
            return Ok(resolved.clone());
        }
        let row = sqlx::query(LOOK_UP).bind(i64::from(oid)).fetch_one(&mut *conn).await?;
        let base: Option<i64> = row.try_get("base")?;
        let element: Option<i64> = row.try_get("element")?;
        let qualified: String = row.try_get("qualified")?;
        // Domains and arrays are over other types; Postgres keeps these chains finite.
        let resolved = if let Some(base) = base {
            let base = Box::pin(self.resolve(base as u32, conn)).await?;
            Resolved { ty: base.ty, cast: qualified }
        } else if let Some(element) = element {
            let element = Box::pin(self.resolve(element as u32, conn)).await?;
            Resolved { ty: SqlType::Array(Box::new(element.ty)), cast: format!("{}[]", element.cast) }
        } else {
            let name: String = row.try_get("name")?;
            let built_in: bool = row.try_get("built_in")?;
            Resolved { ty: plain(&name, built_in, &row.try_get::<String, _>("quoted")?, &qualified), cast: qualified }
        };
        self.0.insert(oid, resolved.clone());
        Ok(resolved)
    }
}

fn plain(name: &str, built_in: bool, quoted: &str, qualified: &str) -> SqlType {
    match SqlType::from_name(name) {
        _ if !built_in => SqlType::Other(qualified.to_owned()),
        // `char` without quotes would be another type.
        SqlType::Other(_) if name == "char" => SqlType::Other(quoted.to_owned()),
        known => known,
    }
}
