-- Replays: publishing events again, on purpose.
--
-- replays   one row per replay: what was asked for, by whom and why, and how far it is
--
-- A replay stores copies of events, each with an id and a position of its own, so that sources, progress, holds and
-- retention treat them like any other event. A copy names its replay and the event that it is a copy of in two headers
-- that nobody else may use; it is published under the latter's id.

create table outbox.replays (
    replay            uuid        primary key default outbox.uuidv7(),
    namespace         text        not null,
    request_id        text        not null check (char_length(request_id) between 1 and 128),
    -- The events it is of: these, or all between two ids for which the rest holds.
    ids               uuid[],
    from_id           uuid,
    before_id         uuid,
    topic             text,
    key               bytea,
    type              text,
    source            text,
    events_per_second integer     not null check (events_per_second > 0),
    reason            text        not null check (reason <> ''),
    requested_by      text        not null check (requested_by <> ''),
    -- How many there were when it was asked for, and the last one's position: events that were stored later are not its.
    matched           bigint      not null,
    last_position     bigint      not null,
    -- Everything up to here has been looked at.
    position          bigint      not null,
    replayed          bigint      not null default 0,
    state             text        not null default 'running' check (state in ('running', 'done', 'cancelled')),
    created_at        timestamptz not null default clock_timestamp(),
    next_at           timestamptz not null default clock_timestamp(),
    ended_at          timestamptz,
    unique (namespace, request_id),
    check ((ids is null) = (from_id is not null) and (ids is null) = (before_id is not null)),
    check ((state = 'running') = (ended_at is null))
);
create index replays_running on outbox.replays (next_at) where state = 'running';

-- The copies of an event, for its history.
create index events_replay_of on outbox.events ((headers ->> 'outbox-replay-of')) where headers ? 'outbox-replay-of';

-- Whether an event is one of a replay's: published, and no copy itself.
create function outbox.is_replayed(event outbox.events, replay outbox.replays) returns boolean
language sql stable as $$
    select event.namespace = replay.namespace
       and (replay.ids is null or event.id = any (replay.ids))
       and (replay.topic is null or event.topic = replay.topic)
       and (replay.key is null or event.key = replay.key)
       and (replay.type is null or event.type = replay.type)
       and (replay.source is null or event.source = replay.source)
       and not coalesce(event.headers ? 'outbox-replay-of', false)
       and outbox.event_state(event) = 'published'
$$;

-- Takes a replay, or finds it taken already. Returns what came of it: `taken`, `reused` when its request id was used for
-- another one, `missing` or `unpublished` with the id that is at fault, `too_large` when it is of more than
-- `p_events_max` events, `too_many` when so many replays run already. A dry run only counts.
create function outbox.request_replay(
    p_namespace text, p_request_id text, p_ids uuid[], p_from_id uuid, p_before_id uuid, p_topic text, p_key bytea,
    p_type text, p_source text, p_events_per_second integer, p_reason text, p_requested_by text, p_events_max bigint,
    p_running_max integer, p_dry_run boolean,
    out outcome text, out culprit uuid, out matched bigint, out replay uuid
) returns record
language plpgsql volatile as $$
declare
    v_replay outbox.replays;
begin
    if not p_dry_run then
        -- One at a time, so that a repeated request is found and running ones are counted.
        perform pg_advisory_xact_lock(hashtextextended('outbox.replays', 0));
    end if;
    select * into v_replay from outbox.replays r where r.namespace = p_namespace and r.request_id = p_request_id;
    if found then
        outcome := case when (v_replay.ids, v_replay.from_id, v_replay.before_id, v_replay.topic, v_replay.key,
                              v_replay.type, v_replay.source, v_replay.events_per_second)
                             is distinct from (p_ids, p_from_id, p_before_id, p_topic, p_key, p_type, p_source,
                                               p_events_per_second)
                        then 'reused' else 'taken' end;
        matched := v_replay.matched;
        replay := v_replay.replay;
        return;
    end if;

    v_replay.namespace := p_namespace;
    v_replay.ids := p_ids;
    v_replay.topic := p_topic;
    v_replay.key := p_key;
    v_replay.type := p_type;
    v_replay.source := p_source;
    if p_ids is not null then
        select i.id, case when e.id is null then 'missing' else 'unpublished' end into culprit, outcome
        from unnest(p_ids) as i (id)
        left join outbox.events e on e.id = i.id and e.namespace = p_namespace
        where e.id is null or not outbox.is_replayed(e, v_replay)
        limit 1;
        if found then
            return;
        end if;
        select count(*), min(e.position), max(e.position) into matched, v_replay.position, v_replay.last_position
        from outbox.events e where e.id = any (p_ids);
    else
        select count(*), min(position), max(position) into matched, v_replay.position, v_replay.last_position
        from (
            select e.position from outbox.events e
            where e.id >= p_from_id and e.id < p_before_id and outbox.is_replayed(e, v_replay)
            limit p_events_max + 1
        ) as found;
    end if;
    if matched > p_events_max then
        outcome := 'too_large';
        return;
    end if;
    outcome := 'taken';
    if p_dry_run then
        return;
    end if;
    if (select count(*) from outbox.replays r where r.state = 'running') >= p_running_max then
        outcome := 'too_many';
        return;
    end if;
    insert into outbox.replays as r (namespace, request_id, ids, from_id, before_id, topic, key, type, source,
                                     events_per_second, reason, requested_by, matched, last_position, position)
    values (p_namespace, p_request_id, p_ids, p_from_id, p_before_id, p_topic, p_key, p_type, p_source,
            p_events_per_second, p_reason, p_requested_by, request_replay.matched, coalesce(v_replay.last_position, 0),
            coalesce(v_replay.position - 1, 0))
    returning r.replay into request_replay.replay;
end
$$;

-- Goes on with the replay whose turn it is: stores copies of its next events, in order of position, and notes how far it
-- is in the same transaction, so that it goes on there after a crash. Looks at `p_looks_max` events at most, and copies no
-- more than are due in a second by its rate. Returns how many were copied, and when the next turn is; null when no replay
-- runs. Runs with its owner's rights, as `promote` does.
create function outbox.go_on_replaying(
    p_events_max integer, p_bytes_max bigint, p_looks_max integer,
    out replayed integer, out next_at timestamptz
) returns record
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $$
declare
    v_replay outbox.replays;
    v_to     bigint;
    v_ids    uuid[];
    v_copies record;
    v_pause  interval := '0';
begin
    replayed := 0;
    select * into v_replay from outbox.replays r
    where r.state = 'running' and r.next_at <= clock_timestamp()
    order by r.next_at limit 1 for update skip locked;
    if found then
        if v_replay.ids is not null then
            select max(e.position), array_agg(e.id) into v_to, v_ids
            from outbox.events e where e.id = any (v_replay.ids) and e.position > v_replay.position;
        else
            select max(position), array_agg(id) into v_to, v_ids from (
                select e.position, e.id from outbox.events e
                where e.position > v_replay.position and e.position <= v_replay.last_position
                  and e.id >= v_replay.from_id and e.id < v_replay.before_id
                order by e.position limit p_looks_max
            ) as looked_at;
        end if;
        select array_agg(c.position order by c.position) as positions, array_agg(c.id order by c.position) as ids,
               array_agg(c.topic order by c.position) as topics, array_agg(c.key order by c.position) as keys,
               array_agg(c.source order by c.position) as sources, array_agg(c.type order by c.position) as types,
               array_agg(c.subject order by c.position) as subjects, array_agg(c.data order by c.position) as data,
               array_agg(c.content_type order by c.position) as content_types,
               array_agg(coalesce(c.headers, '{}')
                         || jsonb_build_object('outbox-replay', v_replay.replay, 'outbox-replay-of', c.id)
                         order by c.position) as headers,
               array_agg(c.time order by c.position) as times,
               array_agg(c.traceparent order by c.position) as traceparents,
               array_agg(c.tracestate order by c.position) as tracestates,
               array_agg(outbox.uuidv7() order by c.position) as copies
        into v_copies
        from (
            select e.*, sum(octet_length(coalesce(e.data, '')) + octet_length(coalesce(e.key, ''))) over (
                order by e.position rows between unbounded preceding and 1 preceding) as bytes_before
            from (
                select e.* from outbox.events e
                where e.id = any (v_ids) and e.position > v_replay.position and outbox.is_replayed(e, v_replay)
                order by e.position limit least(p_events_max, v_replay.events_per_second)
            ) as e
        ) as c
        where coalesce(c.bytes_before, 0) < p_bytes_max;

        if v_copies.copies is not null then
            begin
                perform outbox.append_events(
                    v_replay.namespace, v_copies.copies, v_copies.topics, v_copies.keys, v_copies.sources,
                    v_copies.types, v_copies.subjects, v_copies.data, v_copies.content_types, v_copies.headers,
                    v_copies.times, v_copies.traceparents, v_copies.tracestates);
                replayed := cardinality(v_copies.copies);
                v_pause := interval '1 second' * replayed / v_replay.events_per_second;
                -- There may be more before `v_to`.
                v_to := v_copies.positions[replayed];
            exception when lock_not_available then
                -- Somebody keeps a key of theirs locked.
                v_pause := '1 second';
                v_to := v_replay.position;
            end;
        end if;
        update outbox.replays r
        set position = coalesce(v_to, r.position), replayed = r.replayed + go_on_replaying.replayed,
            next_at = clock_timestamp() + v_pause,
            state = case when v_to is null then 'done' else 'running' end,
            ended_at = case when v_to is null then clock_timestamp() end
        where r.replay = v_replay.replay;
    end if;
    select r.next_at into next_at from outbox.replays r where r.state = 'running' order by r.next_at limit 1;
end
$$;
