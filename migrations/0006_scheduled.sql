-- Delayed events.
--
-- scheduled   events that enter the stream later: they have neither position nor lane until then

-- When a UUIDv7 was made, to the millisecond.
create function outbox.uuidv7_moment(id uuid) returns timestamptz
language sql immutable parallel safe as $$
    select to_timestamp(('x' || encode(substring(uuid_send(id) from 1 for 6), 'hex'))::bit(48)::bigint / 1000.0)
$$;

-- A random UUIDv7 of a moment.
create function outbox.uuidv7(moment timestamptz) returns uuid
language sql volatile parallel safe as $$
    select encode(overlay(uuid_send(outbox.uuidv7()) placing outbox.uuidv7_time(moment) from 1 for 6), 'hex')::uuid
$$;

-- The lane of an event.
create function outbox.lane_of(namespace text, topic text, key bytea, id uuid) returns smallint
language sql stable parallel safe as $$
    select (coalesce(outbox.slot_of(namespace, topic, key), get_byte(uuid_send(id), 15)) % 64)::smallint
$$;

-- With the checks of events: whatever broke one of those could never be promoted. An id carries the time at which its
-- event is due, so that it lies in a partition of that day, which neither waits for it nor goes before it.
create table outbox.scheduled (like outbox.events including constraints);
alter table outbox.scheduled
    drop column lane,
    drop column position,
    drop column xid,
    add column due_at       timestamptz not null,
    add column scheduled_at timestamptz not null default clock_timestamp(),
    -- Among those that are due at the same moment.
    add column ordinal      bigint generated always as identity,
    add primary key (id),
    add constraint scheduled_horizon check (due_at <= scheduled_at + interval '8784 hours'),
    add constraint scheduled_id_is_of_its_time
        check (outbox.uuidv7_moment(id) between due_at - interval '24 hours' and due_at + interval '24 hours'),
    -- Every row leaves, so that what is left of them must go soon: a promotion passes over it.
    set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);
-- A promotion takes what is due first.
create index scheduled_due on outbox.scheduled (due_at, ordinal);

-- Stores events that are due later, in the running transaction. Locks nothing: they are nowhere in the order yet.
create function outbox.schedule_events(
    p_namespace text, p_due timestamptz[], p_ids uuid[], p_topics text[], p_keys bytea[], p_sources text[],
    p_types text[], p_subjects text[], p_data bytea[], p_content_types text[], p_headers jsonb[], p_times timestamptz[],
    p_traceparents text[], p_tracestates text[]
) returns void
language plpgsql volatile as $$
begin
    if exists (select from outbox.events e where e.id = any (p_ids)) then
        raise exception using errcode = '23505', schema = 'outbox', table = 'scheduled',
            message = 'an event with one of these ids is stored already';
    end if;
    insert into outbox.scheduled (namespace, due_at, id, topic, key, source, type, subject, data, content_type, headers,
                                  time, traceparent, tracestate)
    select p_namespace, u.*
    from unnest(p_due, p_ids, p_topics, p_keys, p_sources, p_types, p_subjects, p_data, p_content_types, p_headers,
                p_times, p_traceparents, p_tracestates) as u;
end
$$;

-- Gives scheduled events up: they are never published, and kept with the reason. Returns those that were scheduled.
create function outbox.discard_scheduled(p_namespace text, p_ids uuid[], p_reason text) returns setof uuid
language sql volatile as $$
    with gone as (
        delete from outbox.scheduled
        where id = any (p_ids) and (p_namespace is null or namespace = p_namespace)
        returning *
    )
    insert into outbox.discarded (id, namespace, lane, position, topic, key, source, type, subject, data, content_type,
                                  headers, time, traceparent, tracestate, held_at, held_reason, reason)
    select id, namespace, outbox.lane_of(namespace, topic, key, id), 0, topic, key, source, type, subject, data,
           content_type, headers, time, traceparent, tracestate, scheduled_at,
           'scheduled for ' || to_char(due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), p_reason
    from gone
    returning id
$$;

-- Makes the partition that an event's id belongs to, unless it is there: those of the days to come are, and one of a day
-- that is over only if nobody has promoted anything for long.
create function outbox.make_partition_of(p_id uuid) returns void
language plpgsql volatile as $$
declare
    v_from   timestamptz := date_trunc('day', outbox.uuidv7_moment(p_id), 'UTC');
    v_suffix text := to_char(v_from at time zone 'UTC', 'YYYYMMDD');
begin
    if to_regclass('outbox.events_p' || v_suffix) is null then
        -- One maker at a time.
        perform pg_advisory_xact_lock(hashtextextended('outbox.make_partitions', 0));
        perform outbox.make_partition('events', v_suffix, outbox.uuidv7_floor(v_from)::text,
                                      outbox.uuidv7_floor(v_from + interval '24 hours')::text);
    end if;
end
$$;

-- Promotes what is due: moves scheduled events, the first due first, into the stream, where they take their positions
-- now. One promoter at a time, so that the events of a key keep the order in which they are due. `p_after` passes over
-- what was due until then, and with it over what is left of rows promoted before. Returns how many were promoted, up to
-- when they were due, and when the next one is; nothing when another promoter is at it.
-- Runs with its owner's rights, so that a relay's role needs none of them.
create function outbox.promote(
    p_after timestamptz, p_events_max integer, p_bytes_max bigint,
    out promoted integer, out promoted_to timestamptz, out next_due_at timestamptz
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $$
declare
    v_now    timestamptz := clock_timestamp();
    v_ids    uuid[];
    v_slots  integer[];
    v_events record;
begin
    promoted := 0;
    if not pg_try_advisory_xact_lock(hashtextextended('outbox.promote', 0)) then
        return;
    end if;
    select array_agg(d.id), array_agg(outbox.slot_of(d.namespace, d.topic, d.key)), max(d.due_at)
    into v_ids, v_slots, promoted_to
    from (
        select s.*, sum(octet_length(coalesce(s.data, '')) + octet_length(coalesce(s.key, ''))) over (
            order by s.due_at, s.ordinal rows between unbounded preceding and 1 preceding) as bytes_before
        from (
            select * from outbox.scheduled
            where due_at > p_after and due_at <= v_now
            order by due_at, ordinal limit p_events_max
        ) as s
    ) as d
    where coalesce(d.bytes_before, 0) < p_bytes_max;

    if v_ids is not null then
        -- The slots of all namespaces in one order, before any of them is used. Whoever keeps one locked for long keeps
        -- back its keys alone.
        begin
            perform from outbox.key_slots k where k.slot = any (v_slots) order by k.slot for update;
        exception when lock_not_available then
            with free as (
                select k.slot from outbox.key_slots k where k.slot = any (v_slots) order by k.slot
                for update skip locked
            )
            select array_agg(slot) into v_slots from free;
            promoted_to := null;
        end;
        -- The caller of an immediate event was to give it an id of its own.
        perform outbox.discard_scheduled(null, array_agg(e.id), 'an event with this id was stored before it was due')
        from outbox.events e where e.id = any (v_ids) having count(*) > 0;

        for v_events in
            with gone as (
                delete from outbox.scheduled s
                where s.id = any (v_ids) and (s.key is null or outbox.slot_of(s.namespace, s.topic, s.key) = any (v_slots))
                returning s.*
            )
            select g.namespace, array_agg(g.id order by due_at, ordinal) as ids,
                   array_agg(topic order by due_at, ordinal) as topics, array_agg(key order by due_at, ordinal) as keys,
                   array_agg(source order by due_at, ordinal) as sources,
                   array_agg(type order by due_at, ordinal) as types,
                   array_agg(subject order by due_at, ordinal) as subjects,
                   array_agg(data order by due_at, ordinal) as data,
                   array_agg(content_type order by due_at, ordinal) as content_types,
                   array_agg(headers order by due_at, ordinal) as headers,
                   array_agg(time order by due_at, ordinal) as times,
                   array_agg(traceparent order by due_at, ordinal) as traceparents,
                   array_agg(tracestate order by due_at, ordinal) as tracestates
            from gone g
            group by g.namespace
        loop
            perform outbox.make_partition_of(day.id)
            from (select distinct on (date_trunc('day', outbox.uuidv7_moment(id), 'UTC')) id
                  from unnest(v_events.ids) as id) as day;
            perform outbox.append_events(
                v_events.namespace, v_events.ids, v_events.topics, v_events.keys, v_events.sources, v_events.types,
                v_events.subjects, v_events.data, v_events.content_types, v_events.headers, v_events.times,
                v_events.traceparents, v_events.tracestates);
            promoted := promoted + cardinality(v_events.ids);
        end loop;
    end if;
    select s.due_at into next_due_at from outbox.scheduled s
    where s.due_at > p_after order by s.due_at, s.ordinal limit 1;
end
$$;

-- Replays name by two headers what they copy (0008): from anybody else they would give an event a false id.
create function outbox.refuse_replay_headers(headers jsonb) returns void
language plpgsql immutable as $$
begin
    if headers ?| array['outbox-replay', 'outbox-replay-of'] then
        raise exception using errcode = '23514', message = 'headers must not be named `outbox-replay` or `outbox-replay-of`';
    end if;
end
$$;

-- As before, and with `deliver_after`: the event enters the stream when that time has come; its id, unless given, and
-- the partition that keeps it are of then.
drop function outbox.emit(text, text, jsonb, text, text, text, jsonb, text, uuid, text, text);
drop function outbox.emit_bytes(text, text, bytea, bytea, text, text, text, jsonb, text, uuid, text, text);

create function outbox.emit_bytes(
    topic text, type text, data bytea, key bytea default null, source text default 'outbox', subject text default null,
    content_type text default 'application/octet-stream', headers jsonb default null, namespace text default 'default',
    id uuid default null, traceparent text default null, tracestate text default null,
    deliver_after timestamptz default null
) returns uuid
language plpgsql volatile as $$
declare
    v_now timestamptz := clock_timestamp();
    v_id  uuid;
begin
    content_type := case when data is not null then content_type end;
    perform outbox.refuse_replay_headers(headers);
    if deliver_after > v_now then
        v_id := coalesce(id, outbox.uuidv7(deliver_after));
        perform outbox.schedule_events(
            namespace, array[deliver_after], array[v_id], array[topic], array[key], array[source], array[type],
            array[subject], array[data], array[content_type], array[headers], array[v_now], array[traceparent],
            array[tracestate]);
    else
        v_id := coalesce(id, outbox.uuidv7());
        perform outbox.append_events(
            namespace, array[v_id], array[topic], array[key], array[source], array[type], array[subject], array[data],
            array[content_type], array[headers], array[v_now], array[traceparent], array[tracestate]);
    end if;
    return v_id;
end
$$;

create function outbox.emit(
    topic text, type text, data jsonb, key text default null, source text default 'outbox', subject text default null,
    headers jsonb default null, namespace text default 'default', id uuid default null,
    traceparent text default null, tracestate text default null, deliver_after timestamptz default null
) returns uuid
language sql volatile as $$
    select outbox.emit_bytes(topic, type, convert_to(data::text, 'UTF8'), convert_to(key, 'UTF8'), source, subject,
                             'application/json', headers, namespace, id, traceparent, tracestate, deliver_after)
$$;

-- As before, and each object may have `deliver_after`.
create or replace function outbox.emit_many(events jsonb, namespace text default 'default') returns setof uuid
language plpgsql volatile as $$
declare
    v_now    timestamptz := clock_timestamp();
    v_events record;
    v_ids    uuid[] := '{}';
begin
    perform outbox.refuse_replay_headers(e.e -> 'headers') from jsonb_array_elements(events) as e (e);
    -- Those of now and those of later, each in the array's order.
    for v_events in
        select e.due_at is not null as is_delayed, array_agg(e.n::integer order by e.n) as places,
               array_agg(coalesce((e.e ->> 'id')::uuid, outbox.uuidv7(coalesce(e.due_at, clock_timestamp())))
                         order by e.n) as ids,
               array_agg(e.due_at order by e.n) as due,
               array_agg(e.e ->> 'topic' order by e.n) as topics,
               array_agg(coalesce(decode(e.e ->> 'key_base64', 'base64'), convert_to(e.e ->> 'key', 'UTF8'))
                         order by e.n) as keys,
               array_agg(coalesce(e.e ->> 'source', 'outbox') order by e.n) as sources,
               array_agg(e.e ->> 'type' order by e.n) as types,
               array_agg(e.e ->> 'subject' order by e.n) as subjects,
               array_agg(coalesce(decode(e.e ->> 'data_base64', 'base64'), convert_to((e.e -> 'data')::text, 'UTF8'))
                         order by e.n) as data,
               array_agg(case when e.e ? 'data' then coalesce(e.e ->> 'content_type', 'application/json')
                              when e.e ? 'data_base64'
                              then coalesce(e.e ->> 'content_type', 'application/octet-stream') end
                         order by e.n) as content_types,
               array_agg(e.e -> 'headers' order by e.n) as headers,
               array_agg(v_now order by e.n) as times,
               array_agg(e.e ->> 'traceparent' order by e.n) as traceparents,
               array_agg(e.e ->> 'tracestate' order by e.n) as tracestates
        from (
            select a.e, a.n, case when (a.e ->> 'deliver_after')::timestamptz > v_now
                                  then (a.e ->> 'deliver_after')::timestamptz end as due_at
            from jsonb_array_elements(events) with ordinality as a (e, n)
        ) as e
        group by 1
        -- The slots are locked last.
        order by 1 desc
    loop
        if v_events.is_delayed then
            perform outbox.schedule_events(
                namespace, v_events.due, v_events.ids, v_events.topics, v_events.keys, v_events.sources, v_events.types,
                v_events.subjects, v_events.data, v_events.content_types, v_events.headers, v_events.times,
                v_events.traceparents, v_events.tracestates);
        else
            perform outbox.append_events(
                namespace, v_events.ids, v_events.topics, v_events.keys, v_events.sources, v_events.types,
                v_events.subjects, v_events.data, v_events.content_types, v_events.headers, v_events.times,
                v_events.traceparents, v_events.tracestates);
        end if;
        for i in 1 .. cardinality(v_events.ids) loop
            v_ids[v_events.places[i]] := v_events.ids[i];
        end loop;
    end loop;
    return query select unnest(v_ids);
end
$$;

-- As before; an id that was discarded before it was due says nothing of an event that has it, too.
create or replace function outbox.event_state(event outbox.events) returns text
language sql stable as $$
    select case
        when exists (select from outbox.held h where h.id = event.id) then 'held'
        when exists (select from outbox.discarded d where d.id = event.id and d.position = event.position) then 'discarded'
        when outbox.is_settled(event) then 'published'
        else 'pending'
    end
$$;
