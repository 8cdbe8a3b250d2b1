-- A relay's presence: a lock that its connection holds, so that its death is noticed before its lease runs out.
--
-- Whether it got that lock; without it, as behind a connection pooler, only the lease tells.
alter table outbox.relays add column present boolean not null default false;

create function outbox.presence_key(instance uuid) returns integer
language sql immutable strict as $$ select ('x' || right(replace(instance::text, '-', ''), 8))::bit(32)::integer $$;

-- The first half of the locks' keys, apart from all locks with one key.
create function outbox.presence_class() returns integer
language sql immutable as $$ select 1868919906 $$;
