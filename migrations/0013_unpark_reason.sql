-- Unparking with a reason. It is kept behind the hold's own, which is part of the history of each of its events.

-- A hold's reason once it is unparked for another, or for none. An earlier one of that kind gives way.
create function outbox.unparked_reason(p_held text, p_reason text) returns text
language sql immutable as $$
    select case when p_reason is null then p_held
                else split_part(p_held, '; unparked: ', 1) || '; unparked: ' || p_reason end
$$;

drop function outbox.unpark_topic(text, text, smallint, integer);

-- Has holds of a topic in a lane drained, each as `Unpark` of its event or key has it: those that are not due yet. Holds of
-- a missing topic are of every namespace. Locks the lane's row first, as parking does: its owner changes no hold of it
-- meanwhile. Returns how many.
create function outbox.unpark_topic(
    p_namespace text, p_topic text, p_lane smallint, p_holds_max integer, p_reason text default null
)
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
    update outbox.holds h
    set parked = false, retry_at = clock_timestamp(), reason = outbox.unparked_reason(h.reason, p_reason)
    from chosen c where h.hold = c.hold;
    get diagnostics v_holds = row_count;
    return v_holds;
end
$$;
