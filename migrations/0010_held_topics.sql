-- Unparking and giving up what is held of a whole topic, a lane at a time and no more at once than asked for. Both lock
-- the lane's row first, as parking does: its owner changes no hold of it meanwhile.

-- Has holds of a topic in a lane drained, each as `Unpark` of its event or key has it: those that are not due yet. Holds of
-- a missing topic are of every namespace. Returns how many.
create function outbox.unpark_topic(p_namespace text, p_topic text, p_lane smallint, p_holds_max integer)
returns integer
language plpgsql volatile as $$
declare
    v_holds integer;
begin
    perform from outbox.progress where lane = p_lane for no key update;
    with chosen as (
        select h.hold from outbox.holds h
        where h.lane = p_lane and h.topic = p_topic and h.namespace in (p_namespace, '')
          and (h.parked or h.retry_at is null or h.retry_at > clock_timestamp())
        limit p_holds_max
    )
    update outbox.holds h set parked = false, retry_at = clock_timestamp()
    from chosen c where h.hold = c.hold;
    get diagnostics v_holds = row_count;
    return v_holds;
end
$$;

-- Gives held events of a topic in a lane up, as `outbox.discard` does one: not those that are being published, nor those
-- that a crash would have read again. Of each hold the latest go first, so that what is left stays behind the event
-- that failed, and nothing of it is published before the last is gone. Returns how many.
create function outbox.discard_topic(
    p_namespace text, p_topic text, p_lane smallint, p_events_max integer, p_reason text
) returns integer
language plpgsql volatile as $$
declare
    v_ids uuid[];
begin
    perform from outbox.progress where lane = p_lane for no key update;
    with chosen as (
        select e.id from outbox.holds h
        join outbox.held e on e.hold = h.hold
        where h.lane = p_lane and h.topic = p_topic and h.namespace in (p_namespace, '') and not h.draining
          and e.namespace = p_namespace
          and not exists (select from outbox.events s where s.id = e.id and not outbox.is_settled(s))
        order by h.hold, e.position desc limit p_events_max
    ), gone as (
        delete from outbox.held e using chosen c where e.id = c.id returning e.*
    ), kept as (
        insert into outbox.discarded (id, namespace, lane, position, topic, key, source, type, subject, data, content_type,
                                      headers, time, traceparent, tracestate, held_at, held_reason, reason)
        select g.id, g.namespace, g.lane, g.position, g.topic, g.key, g.source, g.type, g.subject, g.data,
               g.content_type, g.headers, g.time, g.traceparent, g.tracestate, g.held_at, h.reason, p_reason
        from gone g join outbox.holds h on h.hold = g.hold
        returning id
    )
    select array_agg(id) into v_ids from kept;
    -- Without the event that failed, what came behind it meanwhile goes on, and an empty hold ends.
    update outbox.holds set retry_at = clock_timestamp()
    where lane = p_lane and topic = p_topic and event_id = any (v_ids) and not parked;
    return coalesce(cardinality(v_ids), 0);
end
$$;
