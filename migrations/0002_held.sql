-- Events that are set aside, where published ones went, and pausing.
--
-- holds        what is waited for: one event, a key from some event on, or a topic that is not there
-- held         the events that a hold keeps, copied whole: settled although Kafka has not got them
-- discarded    held events that an operator gave up, each with the reason
-- attempts     events that may be what ends the relay's process
-- deliveries   one row per batch that the relay settled, with the place of each event in Kafka
-- pause        one row while every relay is to publish nothing

-- A hold belongs to its lane: only the lane's owner adds events to it and publishes them (drains it), under the lane's
-- epoch. Every held event of a key that has a hold of its own is in that hold, so draining it keeps the key's order.
create table outbox.holds (
    hold            bigint      generated always as identity primary key,
    kind            text        not null check (kind in ('event', 'key', 'topic')),
    lane            smallint    not null,
    -- Empty for a topic: it is missing in every namespace.
    namespace       text        not null,
    topic           text        not null,
    key             bytea,
    -- The event that failed, or that an operator parked; null when a key or topic was parked as such.
    event_id        uuid,
    -- Of its key or topic, only events from here on.
    from_position   bigint      not null default 0,
    parked          boolean     not null default false,
    reason          text        not null,
    -- How often `event_id` was tried and failed.
    attempts        integer     not null default 0,
    first_failed_at timestamptz,
    last_failed_at  timestamptz,
    -- When the owner drains it; null: not before an operator says so.
    retry_at        timestamptz,
    -- Its events are being published: they cannot be discarded.
    draining        boolean     not null default false,
    -- Drains begun since the last one that ended: the process died in the others.
    drains          integer     not null default 0,
    -- What makes it one of its kind; a key may be too long for an index.
    subject         bytea       generated always as (
        case kind when 'event' then uuid_send(event_id) when 'key' then sha256(key) else int2send(lane) end
    ) stored not null,
    unique (kind, topic, namespace, subject),
    check ((kind = 'key') = (key is not null)),
    check (kind <> 'event' or event_id is not null),
    check ((kind = 'topic') = (namespace = ''))
);
-- What a lane's owner has to drain, and whether a lane has any.
create index holds_due on outbox.holds (lane, retry_at);

create table outbox.held (
    id           uuid        primary key,
    hold         bigint      not null references outbox.holds (hold),
    namespace    text        not null,
    lane         smallint    not null,
    position     bigint      not null,
    topic        text        not null,
    key          bytea,
    source       text        not null,
    type         text        not null,
    subject      text,
    data         bytea,
    content_type text,
    headers      jsonb,
    time         timestamptz not null,
    traceparent  text,
    tracestate   text,
    held_at      timestamptz not null default clock_timestamp()
);
-- A drain takes a hold's events in order of position.
create index held_order on outbox.held (hold, position);

-- What operators see of a held event.
create view outbox.held_events as
select e.id, e.namespace, e.lane, e.position, e.topic, e.key, e.type, e.held_at, h.hold, h.kind,
       case when h.parked then 'parked' when h.event_id = e.id then 'failed' else 'behind' end as state,
       h.reason, h.event_id as cause, case when h.event_id = e.id then h.attempts else 0 end as attempts,
       h.first_failed_at, h.last_failed_at, h.retry_at, h.draining
from outbox.held e
join outbox.holds h on h.hold = e.hold;

create table outbox.discarded (
    id           uuid        primary key,
    namespace    text        not null,
    lane         smallint    not null,
    position     bigint      not null,
    topic        text        not null,
    key          bytea,
    source       text        not null,
    type         text        not null,
    subject      text,
    data         bytea,
    content_type text,
    headers      jsonb,
    time         timestamptz not null,
    traceparent  text,
    tracestate   text,
    held_at      timestamptz not null,
    -- Why it was held, and why it was given up.
    held_reason  text        not null,
    reason       text        not null check (reason <> ''),
    discarded_at timestamptz not null default clock_timestamp()
);

-- Appended with the progress that passes the batch. `places` packs position, topic, partition and offset of each
-- event; `topics` are the names that it refers to by index.
create table outbox.deliveries (
    delivered_at timestamptz not null default clock_timestamp(),
    positions    int8range   not null,
    events       integer     not null check (events > 0),
    topics       text[]      not null,
    places       bytea       not null
) partition by range (delivered_at);
-- The batches in which an event may be.
create index deliveries_positions on outbox.deliveries using gist (positions);

create table outbox.pause (
    one       boolean     primary key default true check (one),
    reason    text        not null check (reason <> ''),
    paused_at timestamptz not null default clock_timestamp()
);

-- `claims` counts how often the lane was taken over from an owner that did not give it back, without progress since.
-- When that repeats, its events are sent one at a time, and the start of each attempt is written first.
alter table outbox.progress
    add column claims  integer not null default 0,
    -- Events settled since the outbox was set up.
    add column settled bigint  not null default 0;

-- Attempts of lanes whose owners die: a row that is left is of an event during whose attempt the process ended.
create table outbox.attempts (
    id       uuid     primary key,
    lane     smallint not null,
    attempts integer  not null default 1
);

-- Of these lanes, those that are the relay's under these epochs. They stay so until the transaction ends.
create function outbox.own_lanes(p_owner uuid, p_lanes smallint[], p_epochs bigint[]) returns smallint[]
language plpgsql volatile as $$
declare
    v_own smallint[];
begin
    with own as (
        select p.lane from outbox.progress p
        join unnest(p_lanes, p_epochs) as u (lane, epoch) on p.lane = u.lane and p.epoch = u.epoch
        where p.owner = p_owner
        for share of p
    )
    select coalesce(array_agg(lane), '{}') into v_own from own;
    return v_own;
end
$$;

-- Brings what belongs to a hold into it: its event, wherever that is held, and its key's events out of their topic's hold.
create function outbox.gather(p_hold bigint) returns void
language sql volatile as $$
    update outbox.held e set hold = h.hold
    from outbox.holds h
    where h.hold = p_hold and h.kind <> 'topic' and e.id = h.event_id and e.hold <> h.hold;
    update outbox.held e set hold = h.hold
    from outbox.holds h
    join outbox.holds t on t.kind = 'topic' and t.topic = h.topic and t.namespace = '' and t.subject = int2send(h.lane)
    where h.hold = p_hold and h.kind = 'key' and e.hold = t.hold and e.namespace = h.namespace and e.key = h.key;
$$;

-- Makes a hold for an event that failed, or notes that it failed again, and returns the hold; null when the lane is not
-- the relay's under this epoch any more. `p_kind` says what waits with the event: nothing (`event`), its key from here
-- on (`key`), or its topic (`topic`). An event that is held already because of its topic or key stays with that hold
-- when its topic fails. `p_retry_after` is null when only an operator can help.
create function outbox.set_aside(
    p_owner uuid, p_lane smallint, p_epoch bigint, p_kind text, p_id uuid, p_namespace text, p_topic text, p_key bytea,
    p_position bigint, p_reason text, p_attempts integer, p_retry_after interval
) returns bigint
language plpgsql volatile as $$
declare
    v_hold bigint;
    v_now  timestamptz := clock_timestamp();
begin
    if outbox.own_lanes(p_owner, array[p_lane], array[p_epoch]) = '{}' then
        return null;
    end if;
    if p_kind = 'topic' then
        update outbox.holds h
        set reason = p_reason, last_failed_at = v_now, draining = false, drains = 0,
            retry_at = case when not h.parked then v_now + p_retry_after end
        from outbox.held e
        where e.id = p_id and h.hold = e.hold
        returning h.hold into v_hold;
        if found then
            return v_hold;
        end if;
    end if;

    insert into outbox.holds as h (kind, lane, namespace, topic, key, event_id, from_position, reason, attempts,
                                   first_failed_at, last_failed_at, retry_at)
    values (p_kind, p_lane, case when p_kind = 'topic' then '' else p_namespace end, p_topic,
            case when p_kind = 'key' then p_key end, p_id, p_position, p_reason, p_attempts, v_now, v_now,
            v_now + p_retry_after)
    on conflict (kind, topic, namespace, subject) do update
    set event_id = p_id, reason = p_reason, last_failed_at = v_now, draining = false, drains = 0,
        from_position = least(h.from_position, p_position),
        attempts = case when h.event_id = p_id then h.attempts else 0 end + p_attempts,
        first_failed_at = case when h.event_id = p_id then h.first_failed_at else v_now end,
        -- Twice as long each time, up to 128 times.
        retry_at = case when not h.parked then
            v_now + p_retry_after * case when h.event_id = p_id then 1 << least(h.attempts, 7) else 1 end
        end
    returning h.hold into v_hold;

    perform outbox.gather(v_hold);
    return v_hold;
end
$$;

-- Adds the events that a hold waits for, and returns those that are held now, of lanes that are still the relay's.
-- Arrays run in parallel, one element per event. An event's own hold comes first, then its key's, then its topic's.
create function outbox.hold_events(
    p_owner uuid, p_lanes smallint[], p_epochs bigint[],
    p_ids uuid[], p_event_lanes smallint[], p_positions bigint[], p_namespaces text[], p_topics text[], p_keys bytea[],
    p_sources text[], p_types text[], p_subjects text[], p_data bytea[], p_content_types text[], p_headers text[],
    p_times timestamptz[], p_traceparents text[], p_tracestates text[]
) returns setof uuid
language plpgsql volatile as $$
declare
    -- Before the holds are looked at: whoever parks a key changes the lane's row, too.
    v_lanes smallint[] := outbox.own_lanes(p_owner, p_lanes, p_epochs);
begin
    insert into outbox.held (id, hold, lane, position, namespace, topic, key, source, type, subject, data, content_type,
                             headers, time, traceparent, tracestate)
    select e.id, first.hold, e.lane, e.position, e.namespace, e.topic, e.key, e.source, e.type, e.subject, e.data,
           e.content_type, e.headers::jsonb, e.time, e.traceparent, e.tracestate
    from unnest(p_ids, p_event_lanes, p_positions, p_namespaces, p_topics, p_keys, p_sources, p_types, p_subjects,
                p_data, p_content_types, p_headers, p_times, p_traceparents, p_tracestates)
        as e (id, lane, position, namespace, topic, key, source, type, subject, data, content_type, headers, time,
              traceparent, tracestate)
    cross join lateral (
        select h.hold
        from (values (1, 'event', e.namespace, uuid_send(e.id)),
                     (2, 'key', e.namespace, sha256(e.key)),
                     (3, 'topic', '', int2send(e.lane))) as v (rank, kind, namespace, subject)
        join outbox.holds h on h.kind = v.kind and h.topic = e.topic and h.namespace = v.namespace
                           and h.subject = v.subject
        where h.kind = 'event' or h.from_position <= e.position
        order by v.rank
        limit 1
    ) as first
    where e.lane = any (v_lanes)
    on conflict (id) do nothing;
    return query select h.id from outbox.held h where h.id = any (p_ids) and h.lane = any (v_lanes);
end
$$;

-- Holds an event by itself whose row the relay cannot read, and which it knows by lane and position only. Returns false
-- when the lane is not the relay's any more.
create function outbox.hold_unreadable(
    p_owner uuid, p_lane smallint, p_epoch bigint, p_position bigint, p_reason text
) returns boolean
language plpgsql volatile as $$
declare
    v_event outbox.events;
    v_hold  bigint;
begin
    select e.* into v_event from outbox.events e where e.position = p_position and e.lane = p_lane;
    if not found then
        -- It is being drained, and its partition is gone.
        update outbox.holds h set retry_at = null, draining = false, reason = p_reason
        from outbox.held e
        where e.position = p_position and e.lane = p_lane and h.hold = e.hold;
        return found;
    end if;
    v_hold := outbox.set_aside(p_owner, p_lane, p_epoch, 'event', v_event.id, v_event.namespace, v_event.topic,
                               v_event.key, p_position, p_reason, 1, null);
    if v_hold is null then
        return false;
    end if;
    insert into outbox.held (id, hold, lane, position, namespace, topic, key, source, type, subject, data, content_type,
                             headers, time, traceparent, tracestate)
    values (v_event.id, v_hold, p_lane, p_position, v_event.namespace, v_event.topic, v_event.key, v_event.source,
            v_event.type, v_event.subject, v_event.data, v_event.content_type, v_event.headers, v_event.time,
            v_event.traceparent, v_event.tracestate)
    on conflict (id) do nothing;
    return true;
end
$$;

-- Writes down that an event is about to be tried, and forgets the attempt that has ended. Returns how often it has been
-- tried now; null when its lane is not the relay's any more.
create function outbox.start_attempt(
    p_owner uuid, p_lanes smallint[], p_epochs bigint[], p_id uuid, p_ended uuid
) returns integer
language plpgsql volatile as $$
declare
    v_lanes    smallint[] := outbox.own_lanes(p_owner, p_lanes, p_epochs);
    v_attempts integer;
begin
    if v_lanes = '{}' then
        return null;
    end if;
    delete from outbox.attempts where id = p_ended;
    insert into outbox.attempts as a (id, lane) values (p_id, v_lanes[1])
    on conflict (id) do update set attempts = a.attempts + 1
    returning a.attempts into v_attempts;
    return v_attempts;
end
$$;

-- Lanes whose progress has passed events: whatever ended their former owners, it was not what they wait at now.
create function outbox.has_passed(p_owner uuid, p_lanes smallint[], p_epochs bigint[]) returns void
language plpgsql volatile as $$
declare
    v_lanes smallint[] := outbox.own_lanes(p_owner, p_lanes, p_epochs);
begin
    update outbox.progress set claims = 0 where lane = any (v_lanes);
    delete from outbox.attempts where lane = any (v_lanes);
end
$$;

-- Ends a drain: the events that Kafka has are held no more, and a hold that has none left, and was not parked
-- meanwhile, is gone: what comes next of its key is read after this, and follows what was drained. Only lanes that are
-- the relay's under these epochs change.
create function outbox.end_drain(
    p_owner uuid, p_lanes smallint[], p_epochs bigint[], p_holds bigint[], p_ids uuid[]
) returns void
language plpgsql volatile as $$
declare
    v_lanes smallint[] := outbox.own_lanes(p_owner, p_lanes, p_epochs);
begin
    delete from outbox.held where id = any (p_ids) and lane = any (v_lanes);
    delete from outbox.holds h
    where h.hold = any (p_holds) and h.lane = any (v_lanes) and h.retry_at is not null
      and not exists (select from outbox.held e where e.hold = h.hold);
    update outbox.holds set draining = false, drains = 0
    where hold = any (p_holds) and lane = any (v_lanes) and draining;
end
$$;

-- Parks an event, or a key from a position on. The lane's row is locked, so that its owner adds no event to another hold
-- meanwhile. An event that is parked under a policy that lets others pass has `p_kind` `event`.
create function outbox.park(
    p_kind text, p_namespace text, p_topic text, p_key bytea, p_lane smallint, p_event_id uuid, p_from_position bigint,
    p_reason text
) returns void
language plpgsql volatile as $$
declare
    v_hold bigint;
begin
    perform from outbox.progress where lane = p_lane for no key update;
    insert into outbox.holds as h (kind, lane, namespace, topic, key, event_id, from_position, parked, reason)
    values (p_kind, p_lane, p_namespace, p_topic, case when p_kind = 'key' then p_key end, p_event_id, p_from_position,
            true, p_reason)
    on conflict (kind, topic, namespace, subject) do update
    set parked = true, retry_at = null, reason = p_reason, from_position = least(h.from_position, p_from_position)
    returning h.hold into v_hold;
    perform outbox.gather(v_hold);
end
$$;

-- Gives a held event up. Returns what came of it: `discarded`, `not_held`, `draining` while it is being published, or
-- `unsettled` while a crash would have it read again.
create function outbox.discard(p_namespace text, p_id uuid, p_reason text) returns text
language plpgsql volatile as $$
declare
    v_hold outbox.holds;
begin
    select h.* into v_hold
    from outbox.held e join outbox.holds h on h.hold = e.hold
    where e.id = p_id and e.namespace = p_namespace
    for update of h;
    if not found then
        return 'not_held';
    end if;
    if v_hold.draining then
        return 'draining';
    end if;
    if exists (select from outbox.events e where e.id = p_id and not outbox.is_settled(e)) then
        return 'unsettled';
    end if;
    with gone as (delete from outbox.held where id = p_id returning *)
    insert into outbox.discarded (id, namespace, lane, position, topic, key, source, type, subject, data, content_type,
                                  headers, time, traceparent, tracestate, held_at, held_reason, reason)
    select id, namespace, lane, position, topic, key, source, type, subject, data, content_type, headers, time,
           traceparent, tracestate, held_at, v_hold.reason, p_reason
    from gone;
    -- Without the event that failed, what is behind it goes on.
    update outbox.holds set retry_at = clock_timestamp()
    where hold = v_hold.hold and event_id = p_id and not parked;
    return 'discarded';
end
$$;

-- Where an event is on its way.
create function outbox.event_state(event outbox.events) returns text
language sql stable as $$
    select case
        when exists (select from outbox.held h where h.id = event.id) then 'held'
        when exists (select from outbox.discarded d where d.id = event.id) then 'discarded'
        when outbox.is_settled(event) then 'published'
        else 'pending'
    end
$$;

-- What a partition of events that is about to be dropped says to a new event.
create function outbox.refuse_event() returns trigger
language plpgsql as $$
begin
    raise exception using errcode = '23514', schema = 'outbox', table = tg_table_name,
        message = 'the time of this event id is over: its partition is about to be dropped';
end
$$;

-- Makes the partitions of deliveries, one a day in UTC, from today until `days_ahead` days from now. Returns how many
-- it made.
create function outbox.make_delivery_partitions(days_ahead integer) returns integer
language plpgsql volatile as $$
declare
    v_made integer := 0;
    v_from timestamptz;
begin
    -- One maker at a time.
    perform pg_advisory_xact_lock(hashtextextended('outbox.make_partitions', 0));
    for n in 0 .. days_ahead loop
        v_from := date_trunc('day', clock_timestamp(), 'UTC') + n * interval '24 hours';
        v_made := v_made + outbox.make_partition(
            'deliveries', to_char(v_from at time zone 'UTC', 'YYYYMMDD'),
            v_from::text, (v_from + interval '24 hours')::text)::integer;
    end loop;
    return v_made;
end
$$;

select outbox.make_delivery_partitions(7);
