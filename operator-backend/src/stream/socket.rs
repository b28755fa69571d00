//! Options of the sockets, so that a peer that is slow or gone costs little and not for long.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpListener;

/// What the kernel may hold for one peer; it reserves twice as much. By default it would swallow megabytes
/// for a client that does not read before anybody noticed.
const SEND_BUFFER: usize = 32 * 1024;
/// How long sent data may stay unacknowledged, and a closed window closed.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// When a peer that has nothing to acknowledge is asked whether it is there, and how often. Not before a heartbeat of the
/// default interval has asked the same: thousands of idle peers cost no packet more than that.
const KEEPALIVE: Duration = Duration::from_secs(17);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Sets them all on a listener: Linux gives them to every connection that it accepts, at no cost for each.
pub(super) fn prepare(listener: &TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    socket.set_tcp_keepalive(&keepalive.with_interval(KEEPALIVE_INTERVAL))
}
