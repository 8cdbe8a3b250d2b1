-- Version 2: what an event held, so that another one under the same id is noticed; claims, for effects elsewhere.

-- The first eight bytes of a SHA-256 over type, key and payload. Null in marks of version 1: nothing to compare.
alter table outbox_inbox.marks add column if not exists content int8;

-- A lease on handling an event whose effects are outside this database.
create table if not exists outbox_inbox.claims (
    scope        int4        not null,
    event_id     uuid        not null,
    content      int8,
    token        uuid        not null,
    leased_until timestamptz not null,
    attempts     int4        not null check (attempts > 0),
    completed_at timestamptz,
    result       bytea,
    primary key (scope, event_id),
    check ((completed_at is null) = (result is null))
);

-- Marks and claims that have outlived the window are found by their age; rows lie in its order, so this index is tiny.
create index if not exists marks_age on outbox_inbox.marks using brin (marked_at);
create index if not exists claims_age on outbox_inbox.claims using brin (completed_at);
