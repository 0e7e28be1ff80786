//! The server: HTTP/1 over TCP or TLS, with a bound on everything that a client could make grow.

use super::web::Settings;
use super::{Handler, HttpError, Request, Response, WebConfig, query, requests, text};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use hyper::HeaderMap;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use std::convert::Infallible;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

/// Connections at once; further ones wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 256;
/// Handlers at once, unless the binary says otherwise: as node_exporter's `--web.max-requests`.
const REQUESTS_MAX: usize = 40;
/// A client must send its whole header in this time, or be gone; so must an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that has not agreed on keys by then is gone.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest buffer for a header; scrapers send less than 1 KiB.
const HEADER_BYTES_MAX: usize = 32 << 10;
/// A client that takes nothing of its answer for so long is cut off, or its answer would stay in memory.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// A client must send its whole body in this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bodies in memory at once; further ones get 503.
const BODIES_MAX: usize = 4;
/// How long a shutdown waits for answers that are under way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait after a failed accept, which most often means that file descriptors ran out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What may be posted to a server.
#[derive(Debug, Clone, Copy)]
pub struct Posts {
    /// To which path.
    pub path: &'static str,
    /// As what; a page of another origin may send plain text without asking, but not this.
    pub content_type: &'static str,
    /// Most bytes of a body.
    pub bytes_max: usize,
}

/// A handler with its bounds; the bounds hold over all listeners that it serves.
#[derive(Clone)]
pub struct Server {
    handler: Handler,
    requests: Option<Arc<Semaphore>>,
    connections: Arc<Semaphore>,
    web: Option<Arc<WebConfig>>,
    posts: Option<(Posts, Arc<Semaphore>)>,
    write_timeout: Duration,
}

impl Server {
    /// With the usual bounds.
    pub fn usual(handler: Handler) -> Self {
        Self::new(handler, REQUESTS_MAX)
    }

    /// At most `requests_max` requests at once are answered, further ones get 503; 0 is no bound.
    pub fn new(handler: Handler, requests_max: usize) -> Self {
        let requests = (requests_max > 0).then(|| Arc::new(Semaphore::new(requests_max)));
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { handler, requests, connections, web: None, posts: None, write_timeout: WRITE_TIMEOUT }
    }

    /// With TLS, users, headers and a rate limit as the web configuration says; with `None` everybody may ask.
    pub fn protected_by(self, web: Option<Arc<WebConfig>>) -> Self {
        Self { web, ..self }
    }

    /// That also takes what is posted to one path.
    #[must_use]
    pub fn taking(self, posts: Posts) -> Self {
        Self { posts: Some((posts, Arc::new(Semaphore::new(BODIES_MAX)))), ..self }
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
            let (server, watcher) = (self.clone(), graceful.watcher());
            tokio::spawn(async move {
                server.connection(stream, watcher).await;
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

    async fn connection(self, stream: TcpStream, watcher: Watcher) {
        let tls = self.web.as_ref().and_then(|web| web.current().tls.clone());
        let Some(tls) = tls else { return self.exchange(stream, watcher).await };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls).accept(stream)).await {
            Ok(Ok(stream)) => self.exchange(stream, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "a client could not agree on TLS"),
            Err(_) => tracing::debug!("a client did not finish its TLS handshake in time"),
        }
    }

    async fn exchange(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, watcher: Watcher) {
        let service = service_fn(move |request| {
            let server = self.clone();
            async move {
                let response = server.admit(request).await;
                requests::count(response.status());
                Ok::<_, Infallible>(response)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    /// Answers whom the web configuration lets in, in the order in which exporter-toolkit looks: rate, headers, user.
    async fn admit(&self, request: hyper::Request<Incoming>) -> Response {
        let Some(settings) = self.web.as_ref().map(|web| web.current()) else {
            return self.answer(request).await;
        };
        if settings.limiter.as_ref().is_some_and(|limiter| !limiter.allows()) {
            return text(429, "Too Many Requests\n");
        }
        let mut response = if self.is_admitted(&settings, &request).await {
            self.answer(request).await
        } else {
            let mut response = text(401, "Unauthorized\n");
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
            response
        };
        for (name, value) in &settings.headers {
            response.headers_mut().insert(name, value.clone());
        }
        response
    }

    async fn is_admitted(&self, settings: &Settings, request: &hyper::Request<Incoming>) -> bool {
        if settings.users.is_empty() {
            return true;
        }
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        settings.users.admit(authorization).await
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> Response {
        let path = query::decode(request.uri().path(), false);
        let posts = self.posts.as_ref().filter(|(posts, _)| posts.path == path);
        let is_post = posts.is_some() && *request.method() == hyper::Method::POST;
        if !(is_post || matches!(*request.method(), hyper::Method::GET | hyper::Method::HEAD)) {
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
        let (parts, incoming) = request.into_parts();
        let (body, room) = match posts.filter(|_| is_post) {
            Some((posts, bodies)) => match posted(posts, bodies, &parts.headers, incoming).await {
                Ok((body, room)) => (body, Some(room)),
                Err(response) => return response,
            },
            None => (Bytes::new(), None),
        };
        let request = Request {
            method: parts.method,
            path,
            query: query::pairs(parts.uri.query().unwrap_or_default()),
            headers: parts.headers,
            body,
            received: Instant::now(),
        };
        let handler = Arc::clone(&self.handler);
        let answer = tokio::task::spawn_blocking(move || {
            // Released on this thread: a client that goes away does not make room for another handler.
            let _permits = (permit, room);
            handler(&request)
        });
        answer.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request handler failed");
            text(500, "The request handler failed; see the log.\n")
        })
    }
}

/// The body of a request, and the room that it takes; or why it is not read.
async fn posted(
    posts: &Posts,
    bodies: &Arc<Semaphore>,
    headers: &HeaderMap,
    incoming: Incoming,
) -> Result<(Bytes, OwnedSemaphorePermit), Response> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case(posts.content_type) {
        return Err(text(415, format!("Only {} is taken here, not {kind:?}.\n", posts.content_type)));
    }
    let too_large = || text(413, format!("At most {} bytes are taken at once.\n", posts.bytes_max));
    if incoming.size_hint().lower() > posts.bytes_max as u64 {
        return Err(too_large());
    }
    let Ok(room) = Arc::clone(bodies).try_acquire_owned() else {
        return Err(text(503, "Others are posting at present, try again later.\n"));
    };
    let read = Limited::new(incoming, posts.bytes_max).collect();
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(body)) => Ok((Collected::to_bytes(body), room)),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(text(400, format!("The body cannot be read: {error}.\n"))),
        Err(_) => Err(text(408, format!("The body did not come within {BODY_TIMEOUT:?}.\n"))),
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
    serve_protected(listener, handler, None, shutdown).await
}

/// As [`serve`], for those whom the web configuration lets in.
///
/// # Errors
/// As [`Server::serve`].
pub async fn serve_protected(
    listener: std::net::TcpListener,
    handler: Handler,
    web: Option<Arc<WebConfig>>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), HttpError> {
    Server::usual(handler).protected_by(web).serve(listener, shutdown).await
}
