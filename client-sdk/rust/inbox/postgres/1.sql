-- The inbox of outbox-sdk on Postgres: which consumer has handled which event. Safe to run again.
--
-- A mark is inserted by the first statement of the handler's own transaction, so it is durable exactly when the
-- handler's effects are. Marks are narrow (4 bytes of scope, 16 of event id) because there is one per event.

create schema if not exists outbox_inbox;

-- Event ids are unique within their source, and every consumer handles every event: that pair is a mark's scope.
create table if not exists outbox_inbox.scopes (
    id       int4 generated always as identity primary key,
    consumer text not null check (consumer <> ''),
    source   text not null check (source <> ''),
    unique (consumer, source)
);

-- No foreign key to scopes: it would lock the scope's one row for every mark. Scopes are never deleted.
create table if not exists outbox_inbox.marks (
    scope     int4        not null,
    event_id  uuid        not null,
    marked_at timestamptz not null default now(),
    primary key (scope, event_id)
);
