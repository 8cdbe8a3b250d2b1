-- The sample catalog: commands that callers of outboxd may run by name.

-- name: create_user
-- expect: one
insert into users (id, email, status) values (:user_id, :email, 'pending')
returning id, email, status

-- name: activate_user
-- expect: one
update users set status = 'active', activated_at = now()
where id = :user_id and status = 'pending'
returning id, email, status, activated_at

-- name: find_user
-- expect: at_most_one
-- access: read_only
select id, email, status, activated_at from users where id = :user_id

-- name: place_order
-- expect: one
insert into orders (id, user_id, total) values (:order_id, :user_id, :total)
returning id, user_id, total, placed_at
