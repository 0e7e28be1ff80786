//! The server: HTTP/1 over TCP, with a bound on everything that a client could make grow.

use super::{Handler, HttpError, Request, Response, query, text};
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Connections at once; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 256;
/// Handlers at once, unless the binary says otherwise: as node_exporter's `--web.max-requests`.
const REQUESTS_MAX: usize = 40;
/// A client must send its whole header in this time, or be gone; so must an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest buffer for a header; scrapers send less than 1 KiB.
const HEADER_BYTES_MAX: usize = 32 << 10;
/// A client that takes nothing of its answer for so long is cut off, or its answer would stay in memory.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a shutdown waits for answers that are under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait after a failed accept, which most often means that file descriptors ran out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A handler with its bounds; the bounds hold over all listeners that it serves.
#[derive(Clone)]
pub struct Server {
    handler: Handler,
    requests: Option<Arc<Semaphore>>,
    connections: Arc<Semaphore>,
    write_timeout: Duration,
}

impl Server {
    /// At most `requests_max` requests at once are answered, further ones get 503; 0 is no bound.
    pub fn new(handler: Handler, requests_max: usize) -> Self {
        let requests = (requests_max > 0).then(|| Arc::new(Semaphore::new(requests_max)));
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { handler, requests, connections, write_timeout: WRITE_TIMEOUT }
    }

    #[cfg(test)]
    pub(super) fn with_write_timeout(self, write_timeout: Duration) -> Self {
        Self { write_timeout, ..self }
    }

    /// Serves one listener until `shutdown` is done; then finishes what is under way.
    ///
    /// # Errors
    /// When the listener cannot be used at all; a failing connection is no error.
    pub async fn serve(
        self,
        listener: std::net::TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), HttpError> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let graceful = GracefulShutdown::new();
        tokio::pin!(shutdown);
        loop {
            let accepted = async {
                let permit = Arc::clone(&self.connections).acquire_owned().await;
                listener.accept().await.map(|(stream, _)| (stream, permit))
            };
            let (stream, permit) = tokio::select! {
                () = &mut shutdown => break,
                accepted = accepted => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                },
            };
            bound_writes(&stream, self.write_timeout);
            let server = self.clone();
            let service = service_fn(move |request| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEADER_BYTES_MAX)
                .serve_connection(TokioIo::new(stream), service);
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended early");
                }
                drop(permit);
            });
        }
        // Closed before the wait, so that no client finds a port that nobody answers.
        drop(listener);
        if tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            tracing::warn!("some HTTP clients did not take their answer in time");
        }
        Ok(())
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> Response {
        if !matches!(*request.method(), hyper::Method::GET | hyper::Method::HEAD) {
            let mut response = text(405, "Only GET and HEAD are answered here.\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let permit = match &self.requests {
            Some(requests) => match Arc::clone(requests).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => return text(503, "Limit of concurrent requests reached, try again later.\n"),
            },
            None => None,
        };
        let (parts, _) = request.into_parts();
        let request = Request {
            method: parts.method,
            path: query::decode(parts.uri.path(), false),
            query: query::pairs(parts.uri.query().unwrap_or_default()),
            headers: parts.headers,
        };
        let handler = Arc::clone(&self.handler);
        let answer = tokio::task::spawn_blocking(move || {
            // Released on this thread: a client that goes away does not make room for another handler.
            let _permit = permit;
            handler(&request)
        });
        answer.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request handler failed");
            text(500, "The request handler failed; see the log.\n")
        })
    }
}

/// The kernel ends the connection when sent bytes stay unacknowledged, or the window stays shut, for so long.
fn bound_writes(stream: &TcpStream, timeout: Duration) {
    let millis = libc::c_uint::try_from(timeout.as_millis()).unwrap_or(libc::c_uint::MAX);
    let length = libc::socklen_t::try_from(size_of_val(&millis)).unwrap_or_default();
    // SAFETY: the descriptor is open, and the option's value is the unsigned int that it points to.
    let outcome = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            std::ptr::from_ref(&millis).cast(),
            length,
        )
    };
    if outcome != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "a connection has no write timeout");
    }
}

/// Serves one listener with the usual bounds.
///
/// # Errors
/// As [`Server::serve`].
pub async fn serve(
    listener: std::net::TcpListener,
    handler: Handler,
    shutdown: impl Future<Output = ()>,
) -> Result<(), HttpError> {
    Server::new(handler, REQUESTS_MAX).serve(listener, shutdown).await
}
