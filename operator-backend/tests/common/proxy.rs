//! A line to a backend or a Redis that a test breaks: it goes silent (connections stay, bytes vanish, new ones hang),
//! it is cut (connections end), it leads elsewhere.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

pub(crate) struct Proxy {
    port: u16,
    target: Arc<AtomicU16>,
    cut: Arc<Notify>,
    silent: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, cut) = (Arc::new(AtomicU16::new(target)), Arc::new(Notify::new()));
        let silent = Arc::new(AtomicBool::new(false));
        let (to, end, state) = (Arc::clone(&target), Arc::clone(&cut), Arc::clone(&silent));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, end, state) = (to.load(Ordering::SeqCst), Arc::clone(&end), Arc::clone(&state));
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
                        return;
                    };
                    let ((client_in, client_out), (server_in, server_out)) =
                        (client.into_split(), server.into_split());
                    let lost = AtomicBool::new(false);
                    let both = async {
                        tokio::join!(
                            forward(client_in, server_out, &state, &lost),
                            forward(server_in, client_out, &state, &lost)
                        )
                    };
                    tokio::select! {
                        _ = both => {}
                        () = end.notified() => {}
                    }
                });
            }
        });
        Self { port, target, cut, silent, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// New connections lead to this port; those that are open stay where they are.
    pub(crate) fn switch(&self, target: u16) {
        self.target.store(target, Ordering::SeqCst);
    }

    /// Ends every open connection.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// From now on every byte vanishes, in both directions.
    pub(crate) fn go_silent(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }

    /// From now on bytes pass again, but on no connection that has lost any: TCP has no holes.
    pub(crate) fn heal(&self) {
        self.silent.store(false, Ordering::SeqCst);
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    silent: &AtomicBool,
    lost: &AtomicBool,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if silent.load(Ordering::SeqCst) {
            lost.store(true, Ordering::SeqCst);
        } else if lost.load(Ordering::SeqCst) || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    // A close does not get through a line that drops packets either.
    while silent.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
