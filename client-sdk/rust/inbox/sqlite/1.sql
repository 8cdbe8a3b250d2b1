-- The inbox of outbox-sdk on SQLite: which consumer has handled which event. Times are Unix milliseconds.
--
-- A mark is inserted by the first statement of the handler's own transaction, so it is durable exactly when the
-- handler's effects are.

create table outbox_inbox_scopes (
    id       integer primary key,
    consumer text not null check (consumer <> ''),
    source   text not null check (source <> ''),
    unique (consumer, source)
) strict;

create table outbox_inbox_marks (
    scope     integer not null,
    event_id  blob    not null check (length(event_id) = 16),
    content   integer,
    marked_at integer not null,
    primary key (scope, event_id)
) strict, without rowid;

-- A lease on handling an event whose effects are outside this database.
create table outbox_inbox_claims (
    scope        integer not null,
    event_id     blob    not null check (length(event_id) = 16),
    content      integer,
    token        blob    not null check (length(token) = 16),
    leased_until integer not null,
    attempts     integer not null check (attempts > 0),
    completed_at integer,
    result       blob,
    primary key (scope, event_id),
    check ((completed_at is null) = (result is null))
) strict, without rowid;

-- Marks and claims that have outlived the window are found by their age.
create index outbox_inbox_marks_age on outbox_inbox_marks (marked_at);
create index outbox_inbox_claims_age on outbox_inbox_claims (completed_at) where completed_at is not null;
