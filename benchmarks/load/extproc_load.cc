// Load generator for Envoy ext_proc servers (Endpoint Pickers). It speaks the gRPC method
// envoy.service.ext_proc.v3.ExternalProcessor/Process over HTTP/2, in cleartext or TLS, and plays Envoy's side of
// FULL_DUPLEX_STREAMED requests and responses, for chat completions with streamed answers:
//
//   client -> request_headers (about 16 headers, protocol_config), request_body... (64 KiB pieces, end_of_stream)
//   server -> request_headers response, request_body response(s) that echo the whole body
//   client -> response_headers
//   server -> response_headers response
//   client -> response_body, -n times (the last with end_of_stream); each is sent when the previous one was echoed
//   server -> response_body response for each one
//   client -> half-close; server -> trailers
//
// -n 0 plays `response_body_mode: NONE`: half-close right after the response_headers reply.
// --reset and --disconnect play clients and gateways that go away: streams that end early at a random point.
// Every reply is checked (header mutation present, echoed lengths right); a wrong one counts as an error.
// The result is one line of JSON on stdout. --help lists the options.

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <queue>
#include <random>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

using std::max;
using std::min;
using std::string;
using std::vector;

// ---- options -------------------------------------------------------------------------------------------------------
static string HOST = "127.0.0.1", LABEL = "-";
static int PORT = 50051, CONNS = 1, CONCURRENCY = 1, BODY = 512, IDS = 0, CHUNKS = 1, CHUNK = 200, PIPELINE = 0, TLS = 0;
static double DURATION = 3, WARMUP = 0.7, RATE = 0, TOKEN_MS = 0, RESET = 0, DISCONNECT = 0;
static long ONCE = 0;
static vector<int> PIDS;
static const int VARIANTS = 32;  // different request bodies; 4 share the first half of their text

// ---- protobuf and gRPC wire format ---------------------------------------------------------------------------------
static void varint(string &s, uint64_t v) {
  while (v >= 128) {
    s.push_back((char)(v | 128));
    v >>= 7;
  }
  s.push_back((char)v);
}
static void put_bytes(string &s, int field, const string &b) {
  varint(s, (uint64_t)field << 3 | 2);
  varint(s, b.size());
  s += b;
}
static void put_int(string &s, int field, uint64_t v) {
  varint(s, (uint64_t)field << 3);
  varint(s, v);
}
static string grpc_frame(const string &message) {
  string o(1, '\0');
  uint32_t n = htonl(message.size());
  o.append((char *)&n, 4);
  return o + message;
}
// HttpHeaders{1: HeaderMap{1: HeaderValue{1: key, 3: raw_value}}, 3: end_of_stream}
static string http_headers(const vector<std::pair<string, string>> &headers) {
  string map, o;
  for (auto &h : headers) {
    string value;
    put_bytes(value, 1, h.first);
    put_bytes(value, 3, h.second);
    put_bytes(map, 1, value);
  }
  put_bytes(o, 1, map);
  return o;
}
// ProcessingRequest{field: HttpBody{1: body, 2: end_of_stream}}, framed
static string body_message(int field, const char *p, size_t n, bool end) {
  string body, message;
  if (n) put_bytes(body, 1, string(p, n));
  if (end) put_int(body, 2, 1);
  put_bytes(message, field, body);
  return grpc_frame(message);
}
// Reads one protobuf field; false at the end.
static bool field(const uint8_t *&p, const uint8_t *end, int &number, int &type, const uint8_t *&data, uint64_t &v) {
  if (p >= end) return false;
  auto read = [&] {
    uint64_t r = 0;
    int shift = 0;
    while (p < end) {
      uint8_t b = *p++;
      r |= (uint64_t)(b & 127) << shift;
      if (b < 128) break;
      shift += 7;
    }
    return r;
  };
  uint64_t key = read();
  number = key >> 3;
  type = key & 7;
  if (type == 0) v = read();
  else if (type == 2) {
    v = read();
    data = p;
    p += v;
  } else if (type == 5) p += 4;
  else if (type == 1) p += 8;
  return p <= end;
}

// ---- state ---------------------------------------------------------------------------------------------------------
static vector<string> request_messages;  // request_headers + request_body..., framed, one per variant
static size_t request_body_length = 0;
static string response_headers, token, last_token;

struct Stream;
struct Conn {
  int fd;
  nghttp2_session *session;
  std::unordered_set<Stream *> streams;
  SSL *ssl = nullptr;
  bool want_write = false;
  string buffer;
  size_t offset = 0;
};
struct Stream {
  Conn *conn;
  int32_t id = 0;
  string out, in;
  size_t offset = 0, echoed = 0;
  bool deferred = false, half_close = false, headers_ok = false;
  int sent = 0, answered = 0;  // response chunks
  int cut_at = -1;             // step after which it is reset: 0 in the request, 1 the pick, then one per response chunk
  bool cut = false;
  double started, token_sent;
};
struct Timer {
  double at;
  Stream *stream;
  bool operator<(const Timer &o) const { return at > o.at; }
};
static std::priority_queue<Timer> timers;
static vector<double> pick_seconds, token_seconds;
static vector<Stream *> cuts;  // to be reset as soon as no callback runs
static long done = 0, errors = 0, started = 0, resets = 0, disconnects = 0, lost = 0;
static int live = 0;
static bool measuring = false;
static std::mt19937_64 rng(42);

static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}
static void fail(const char *what, long a, long b) {
  if (errors++ < 5) fprintf(stderr, "%s: %ld, %ld\n", what, a, b);
}

// ---- one stream ----------------------------------------------------------------------------------------------------
static void step(Stream *s, int number) {
  if (s->cut_at != number || s->cut) return;
  s->cut = true;
  cuts.push_back(s);
}
static ssize_t read_data(nghttp2_session *, int32_t, uint8_t *buf, size_t len, uint32_t *flags,
                         nghttp2_data_source *src, void *) {
  Stream *s = (Stream *)src->ptr;
  size_t n = min(len, s->out.size() - s->offset);
  if (n == 0) {
    if (s->half_close) {
      *flags |= NGHTTP2_DATA_FLAG_EOF;
      return 0;
    }
    s->deferred = true;
    return NGHTTP2_ERR_DEFERRED;
  }
  memcpy(buf, s->out.data() + s->offset, n);
  s->offset += n;
  step(s, 0);
  if (s->offset == s->out.size()) {
    s->out.clear();
    s->offset = 0;
    if (s->half_close) *flags |= NGHTTP2_DATA_FLAG_EOF;
  }
  return n;
}
static void resume(Stream *s) {
  if (!s->deferred) return;
  s->deferred = false;
  nghttp2_session_resume_data(s->conn->session, s->id);
}
static void half_close(Stream *s) {
  s->half_close = true;
  resume(s);
}
static nghttp2_nv nv(const char *a, const char *b) {
  return {(uint8_t *)a, (uint8_t *)b, strlen(a), strlen(b), NGHTTP2_NV_FLAG_NONE};
}
static void start(Conn *c) {
  if (ONCE && started >= ONCE) return;
  started++;
  auto *s = new Stream;
  if (RESET > 0 && rng() % 10000 < RESET * 10000) s->cut_at = rng() % (CHUNKS + 2);
  s->conn = c;
  s->started = now();
  s->out = request_messages[rng() % request_messages.size()];
  nghttp2_nv h[] = {nv(":method", "POST"),
                    nv(":scheme", "http"),
                    nv(":path", "/envoy.service.ext_proc.v3.ExternalProcessor/Process"),
                    nv(":authority", "epp"),
                    nv("te", "trailers"),
                    nv("content-type", "application/grpc"),
                    nv("x-envoy-internal", "true"),
                    nv("x-forwarded-for", "10.1.2.3")};
  nghttp2_data_provider provider;
  provider.source.ptr = s;
  provider.read_callback = read_data;
  s->id = nghttp2_submit_request(c->session, nullptr, h, 8, &provider, s);
  if (s->id < 0) {
    fprintf(stderr, "submit: %s\n", nghttp2_strerror(s->id));
    exit(1);
  }
  c->streams.insert(s);
  live++;
}
static void send_token(Stream *s) {
  do {
    s->sent++;
    s->out += s->sent == CHUNKS ? last_token : token;
  } while (PIPELINE && s->sent < CHUNKS);
  s->token_sent = now();
  resume(s);
}
// Next token chunk: at once, or TOKEN_MS after the one before.
static void next_token(Stream *s, double after) {
  if (TOKEN_MS > 0) timers.push({after + TOKEN_MS * 1e-3, s});
  else send_token(s);
}
// One ProcessingResponse.
static void on_message(Stream *s, const uint8_t *p, size_t n) {
  const uint8_t *end = p + n, *data = nullptr, *body = nullptr;
  int number, type, kind = 0;
  uint64_t v = 0, body_size = 0;
  while (field(p, end, number, type, data, v))
    if (number >= 1 && number <= 7 && type == 2) {
      kind = number;
      body = data;
      body_size = v;
    }
  size_t length = 0;
  bool eos = false;
  if (kind == 3 || kind == 4) {  // BodyResponse{1: CommonResponse{3: BodyMutation{3: StreamedBodyResponse{1, 2}}}}
    const uint8_t *q = body, *q_end = body + body_size;
    int depth = 0;
    for (const int path[3] = {1, 3, 3}; depth < 3; depth++) {
      const uint8_t *r = q;
      bool found = false;
      while (!found && field(r, q_end, number, type, data, v))
        if (number == path[depth]) {
          q = data;
          q_end = data + v;
          found = true;
        }
      if (!found) break;
    }
    if (depth == 3)
      while (field(q, q_end, number, type, data, v)) {
        if (number == 1) length = v;
        if (number == 2) eos = v;
      }
  }
  switch (kind) {
    case 1:  // request_headers: the pick
      s->headers_ok = body_size > 10;
      step(s, 1);
      break;
    case 3:  // request_body echo
      s->echoed += length;
      if (!eos) break;
      if (!s->headers_ok) fail("request_body answered before request_headers", 0, 0);
      if (s->echoed != request_body_length) fail("request body: echoed, wanted", s->echoed, request_body_length);
      if (measuring) pick_seconds.push_back(now() - s->started);
      s->out += response_headers;
      resume(s);
      break;
    case 2:  // response_headers
      if (CHUNKS == 0) half_close(s);
      else next_token(s, now());
      break;
    case 4:  // response_body echo
      s->answered++;
      if (length != (size_t)CHUNK) fail("response chunk: echoed, wanted", length, CHUNK);
      step(s, s->answered + 1);
      if (measuring && !PIPELINE) token_seconds.push_back(now() - s->token_sent);
      if (s->answered == CHUNKS) {
        if (!eos) fail("last response chunk without end_of_stream", s->answered, CHUNKS);
        half_close(s);
      } else if (!PIPELINE) next_token(s, s->token_sent);
      break;
    default:
      fail("unexpected reply kind", kind, 0);
  }
}
static int on_data(nghttp2_session *session, uint8_t, int32_t id, const uint8_t *d, size_t n, void *) {
  auto *s = (Stream *)nghttp2_session_get_stream_user_data(session, id);
  if (!s) return 0;
  s->in.append((const char *)d, n);
  size_t o = 0;
  while (s->in.size() - o >= 5) {
    uint32_t length;
    memcpy(&length, s->in.data() + o + 1, 4);
    length = ntohl(length);
    if (s->in.size() - o < 5 + length) break;
    on_message(s, (const uint8_t *)s->in.data() + o + 5, length);
    o += 5 + length;
  }
  if (o) s->in.erase(0, o);
  return 0;
}
static void forget_timers(Stream *s) {
  std::priority_queue<Timer> keep;
  for (; !timers.empty(); timers.pop())
    if (timers.top().stream != s) keep.push(timers.top());
  timers.swap(keep);
}
static int on_close(nghttp2_session *session, int32_t id, uint32_t code, void *) {
  auto *s = (Stream *)nghttp2_session_get_stream_user_data(session, id);
  if (!s) return 0;
  if (s->cut) {
    resets++;
    cuts.erase(std::remove(cuts.begin(), cuts.end(), s), cuts.end());
  } else if (code || s->answered != CHUNKS) fail("stream closed early: error code, chunks answered", code, s->answered);
  if (measuring) done++;
  live--;
  Conn *c = s->conn;
  nghttp2_session_set_stream_user_data(session, id, nullptr);
  if (TOKEN_MS > 0 && s->answered != CHUNKS) forget_timers(s);
  c->streams.erase(s);
  delete s;
  if (RATE == 0) start(c);
  return 0;
}

// ---- messages ------------------------------------------------------------------------------------------------------
static void make_messages() {
  const string words =
      "the quick brown fox jumps over lazy dog while engineers measure every microsecond of latency in routing large "
      "language model requests ";
  const string before =
      "{\"model\":\"meta-llama/Llama-3.1-8B-Instruct\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a "
      "helpful assistant.\"},{\"role\":\"user\",\"content\":\"";
  const string after =
      "\"}],\"max_tokens\":256,\"temperature\":0.7,\"stream\":true,\"stream_options\":{\"include_usage\":true}}";
  for (int variant = 0; variant < VARIANTS; variant++) {
    string text, body;
    if (IDS) {
      text = "{\"model\":\"m\",\"max_tokens\":256,\"stream\":true,\"prompt\":[";
      auto draw = [&](unsigned seed, int count) {  // five digits each; event publishers know these prompts
        std::mt19937 r(seed);
        for (int i = 0; i < count; i++) text += std::to_string(r() % 90000 + 10000) + ",";
      };
      draw(variant / 4, IDS / 2);
      draw(1000 + variant, IDS - IDS / 2);
      text.back() = ']';
      body = text + "}";
    } else {
      int room = max(0, BODY - (int)before.size() - (int)after.size());
      auto fill = [&](unsigned seed, int size) {
        std::mt19937 r(seed);
        while ((int)text.size() < size) text += words.substr(r() % 40, 20) + std::to_string(r() % 100);
        text.resize(size);
      };
      fill(variant / 4, room / 2);
      fill(1000 + variant, room);
      body = before + text + after;
    }
    request_body_length = body.size();
    string request, protocol;
    put_bytes(request, 2,
              http_headers({{":authority", "gw.example.com"},
                            {":path", IDS ? "/v1/completions" : "/v1/chat/completions"},
                            {":method", "POST"},
                            {":scheme", "http"},
                            {"user-agent", "OpenAI/Python 1.51.0"},
                            {"accept", "application/json"},
                            {"accept-encoding", "gzip, deflate"},
                            {"content-type", "application/json"},
                            {"content-length", std::to_string(body.size())},
                            {"authorization", "Bearer example"},
                            {"x-stainless-lang", "python"},
                            {"x-stainless-package-version", "1.51.0"},
                            {"x-forwarded-for", "10.0.0.1"},
                            {"x-forwarded-proto", "http"},
                            {"x-request-id", "4c7ef2b0-3a36-4ce9-94a3-0b1f8e3f90a" + std::to_string(variant % 10)}}));
    put_int(protocol, 1, 4);                // request_body_mode: FULL_DUPLEX_STREAMED
    put_int(protocol, 2, CHUNKS ? 4 : 0);   // response_body_mode: the same, or NONE
    put_bytes(request, 8, "");              // metadata_context
    put_bytes(request, 11, protocol);
    string messages = grpc_frame(request);
    for (size_t o = 0; o < body.size(); o += 65536) {
      size_t n = min<size_t>(65536, body.size() - o);
      messages += body_message(4, body.data() + o, n, o + n >= body.size());
    }
    request_messages.push_back(messages);
  }
  string headers;
  put_bytes(headers, 3,
            http_headers({{":status", "200"},
                          {"date", "Mon, 01 Jan 2026 00:00:00 GMT"},
                          {"server", "uvicorn"},
                          {"content-type", "text/event-stream; charset=utf-8"},
                          {"transfer-encoding", "chunked"},
                          {"x-envoy-upstream-service-time", "12"}}));
  response_headers = grpc_frame(headers);
  string event =
      "data: {\"id\":\"chatcmpl-123\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":"
      "{\"content\":\"";
  const string tail = "\"}}]}\n\n";
  while ((int)(event.size() + tail.size()) < CHUNK) event += 'a';
  event += tail;
  CHUNK = event.size();
  token = body_message(5, event.data(), event.size(), false);
  last_token = body_message(5, event.data(), event.size(), true);
}

// ---- measuring -----------------------------------------------------------------------------------------------------
// CPU seconds of the server processes: the sum over their threads of the time on CPU (nanosecond resolution).
static double server_cpu() {
  double ns = 0;
  for (int pid : PIDS) {
    string path = "/proc/" + std::to_string(pid) + "/task";
    DIR *dir = opendir(path.c_str());
    if (!dir) continue;
    while (dirent *e = readdir(dir)) {
      if (e->d_name[0] == '.') continue;
      FILE *f = fopen((path + "/" + e->d_name + "/schedstat").c_str(), "r");
      if (!f) continue;
      unsigned long long x = 0;
      if (fscanf(f, "%llu", &x) == 1) ns += x;
      fclose(f);
    }
    closedir(dir);
  }
  return ns * 1e-9;
}
static double own_cpu() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}
static double percentile_us(vector<double> &v, double p) {
  if (v.empty()) return 0;
  size_t k = min(v.size() - 1, (size_t)(p * v.size()));
  nth_element(v.begin(), v.begin() + k, v.end());
  return v[k] * 1e6;
}

// ---- event loop ----------------------------------------------------------------------------------------------------
// Like send() and recv(), through TLS where it is on: -1 with EAGAIN when it would block, 0 at the end.
static ssize_t put(Conn *c, const char *p, size_t n) {
  if (!c->ssl) return send(c->fd, p, n, MSG_NOSIGNAL);
  int r = SSL_write(c->ssl, p, n);
  if (r > 0) return r;
  int e = SSL_get_error(c->ssl, r);
  errno = e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE ? EAGAIN : EPIPE;
  return -1;
}
static ssize_t get(Conn *c, uint8_t *p, size_t n) {
  if (!c->ssl) return recv(c->fd, p, n, 0);
  int r = SSL_read(c->ssl, p, n);
  if (r > 0) return r;
  int e = SSL_get_error(c->ssl, r);
  if (e == SSL_ERROR_ZERO_RETURN) return 0;
  errno = e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE ? EAGAIN : EPIPE;
  return -1;
}
// The certificate is not verified, as gateways do towards a picker.
static SSL *handshake(int fd) {
  static SSL_CTX *context = nullptr;
  if (!context) {
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_alpn_protos(context, (const unsigned char *)"\x02h2", 3);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  }
  SSL *ssl = SSL_new(context);
  SSL_set_fd(ssl, fd);
  if (SSL_connect(ssl) != 1) {
    ERR_print_errors_fp(stderr);
    exit(1);
  }
  return ssl;
}
// False when the socket is full.
static bool flush(Conn *c) {
  for (;;) {
    if (c->offset < c->buffer.size()) {
      ssize_t r = put(c, c->buffer.data() + c->offset, c->buffer.size() - c->offset);
      if (r < 0) {
        if (errno == EAGAIN) return false;
        perror("send");
        exit(1);
      }
      c->offset += r;
      continue;
    }
    c->buffer.clear();
    c->offset = 0;
    while (c->buffer.size() < 262144) {
      const uint8_t *d;
      ssize_t n = nghttp2_session_mem_send(c->session, &d);
      if (n <= 0) break;
      c->buffer.append((const char *)d, n);
    }
    if (c->buffer.empty()) return true;
  }
}
static void open_connection(Conn *c, nghttp2_session_callbacks *callbacks, int ep) {
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(PORT);
  inet_pton(AF_INET, HOST.c_str(), &a.sin_addr);
  if (connect(c->fd, (sockaddr *)&a, sizeof a)) {
    perror("connect");
    exit(1);
  }
  int one = 1;
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (TLS) c->ssl = handshake(c->fd);
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  nghttp2_session_client_new(&c->session, callbacks, c);
  nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                       {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 16 * 1024 * 1024},
                                       {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1024}};
  nghttp2_submit_settings(c->session, 0, settings, 3);
  nghttp2_session_set_local_window_size(c->session, 0, 0, 256 * 1024 * 1024);
  epoll_event ev{};
  ev.events = EPOLLIN;
  ev.data.ptr = c;
  epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev);
}
// As when a gateway dies: no GOAWAY, no reset, its streams just end.
static void disconnect(Conn *c, nghttp2_session_callbacks *callbacks, int ep) {
  linger at_once{1, 0};
  setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close(c->fd);
  if (c->ssl) SSL_free(c->ssl);
  nghttp2_session_del(c->session);
  for (auto *s : c->streams) {
    if (TOKEN_MS > 0) forget_timers(s);
    cuts.erase(std::remove(cuts.begin(), cuts.end(), s), cuts.end());
    delete s;
  }
  size_t open = c->streams.size();
  lost += open;
  live -= open;
  if (measuring) done += open;
  disconnects++;
  *c = Conn{};
  open_connection(c, callbacks, ep);
  if (RATE == 0)
    for (size_t i = 0; i < open; i++) start(c);
}
static void usage() {
  fprintf(stderr,
          "usage: extproc-load --port PORT [options]\n"
          "  --host IP      server (127.0.0.1)           --conns N     HTTP/2 connections (1)\n"
          "  -k N           closed loop: streams in flight, over all connections (1)\n"
          "  --rate R       open loop instead: R new streams/s, Poisson arrivals\n"
          "  --body BYTES   request body (512; at least ~250)\n"
          "  --ids N        a prompt of N token ids instead, for /v1/completions\n"
          "  -n N           response chunks (1); 0 = response_body_mode NONE\n"
          "  --chunk BYTES  size of a response chunk (200)\n"
          "  --tokms MS     time between response chunks (0: each as soon as the last was echoed)\n"
          "  --once N       end after N streams             --reset SHARE  of streams that are reset on their way (0)\n"
          "  --disconnect R connections dropped per second, without a word (0)\n"
          "  --tls          TLS without verification, ALPN h2\n"
          "  --pipe         send all response chunks at once\n"
          "  --warm S       warm-up (0.7)                --dur S       measured time (3)\n"
          "  --pid P[,P]    server processes to account  --label TEXT  copied to the result\n");
  exit(2);
}
static void parse(int ac, char **av) {
  for (int i = 1; i < ac; i++) {
    string a = av[i];
    if (a == "--pipe") {
      PIPELINE = 1;
      continue;
    }
    if (a == "--tls") {
      TLS = 1;
      continue;
    }
    if (i + 1 >= ac) usage();
    string v = av[++i];
    if (a == "--host") HOST = v;
    else if (a == "--port") PORT = stoi(v);
    else if (a == "--conns") CONNS = stoi(v);
    else if (a == "-k") CONCURRENCY = stoi(v);
    else if (a == "--body") BODY = stoi(v);
    else if (a == "--ids") IDS = stoi(v);
    else if (a == "-n") CHUNKS = stoi(v);
    else if (a == "--chunk") CHUNK = stoi(v);
    else if (a == "--dur") DURATION = stod(v);
    else if (a == "--warm") WARMUP = stod(v);
    else if (a == "--rate") RATE = stod(v);
    else if (a == "--tokms") TOKEN_MS = stod(v);
    else if (a == "--once") ONCE = stol(v);
    else if (a == "--reset") RESET = stod(v);
    else if (a == "--disconnect") DISCONNECT = stod(v);
    else if (a == "--label") LABEL = v;
    else if (a == "--pid") {
      for (char *t = strtok(v.data(), ","); t; t = strtok(nullptr, ",")) PIDS.push_back(atoi(t));
    } else usage();
  }
  if (ac < 2) usage();
}
int main(int ac, char **av) {
  parse(ac, av);
  make_messages();
  nghttp2_session_callbacks *callbacks;
  nghttp2_session_callbacks_new(&callbacks);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
  int ep = epoll_create1(0);
  vector<Conn *> conns;
  for (int i = 0; i < CONNS; i++) {
    conns.push_back(new Conn);
    open_connection(conns.back(), callbacks, ep);
  }
  if (RATE == 0)
    for (int i = 0; i < CONCURRENCY; i++) start(conns[i % CONNS]);

  double measure_at = now() + WARMUP, end_at = measure_at + DURATION, arrival = now(), drop = now() + 1 / DISCONNECT;
  double server_before = 0, own_before = 0;
  size_t round_robin = 0;
  std::exponential_distribution<double> gap(RATE > 0 ? RATE : 1);
  static uint8_t buf[262144];
  for (;;) {
    double t = now();
    if (t >= end_at || (ONCE && started >= ONCE && live == 0)) break;
    while (!cuts.empty()) {
      Stream *s = cuts.back();
      cuts.pop_back();
      nghttp2_submit_rst_stream(s->conn->session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_CANCEL);
    }
    if (DISCONNECT > 0 && t >= drop) {
      drop = t + 1 / DISCONNECT;
      disconnect(conns[rng() % conns.size()], callbacks, ep);
    }
    if (!measuring && t >= measure_at) {
      measuring = true;
      measure_at = t;
      server_before = server_cpu();
      own_before = own_cpu();
    }
    if (RATE > 0)
      for (; arrival <= t; arrival += gap(rng)) start(conns[round_robin++ % CONNS]);
    while (!timers.empty() && timers.top().at <= t) {
      Stream *s = timers.top().stream;
      timers.pop();
      send_token(s);
    }
    for (auto *c : conns) {
      bool blocked = !flush(c);
      if (blocked != c->want_write) {
        c->want_write = blocked;
        epoll_event ev{};
        ev.events = blocked ? EPOLLIN | EPOLLOUT : EPOLLIN;
        ev.data.ptr = c;
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
      }
    }
    double until = measuring ? end_at : measure_at;
    if (RATE > 0) until = min(until, arrival);
    if (!timers.empty()) until = min(until, timers.top().at);
    if (!cuts.empty()) until = 0;
    double wait = min(0.2, max(0.0, until - now()));
    timespec ts{0, (long)(wait * 1e9)};
    epoll_event events[16];
    int n = epoll_pwait2(ep, events, 16, &ts, nullptr);
    for (int i = 0; i < n; i++) {
      auto *c = (Conn *)events[i].data.ptr;
      if (!(events[i].events & EPOLLIN)) continue;
      for (;;) {
        ssize_t r = get(c, buf, sizeof buf);
        if (r == 0) {
          fprintf(stderr, "connection closed by the server\n");
          return 2;
        }
        if (r < 0) break;
        ssize_t k = nghttp2_session_mem_recv(c->session, buf, r);
        if (k < 0) {
          fprintf(stderr, "receive: %s\n", nghttp2_strerror(k));
          return 3;
        }
        if (!c->ssl || !SSL_pending(c->ssl)) break;
      }
    }
  }
  double elapsed = now() - measure_at, server = server_cpu() - server_before, own = own_cpu() - own_before;
  long late = std::count_if(token_seconds.begin(), token_seconds.end(), [](double x) { return x > 5e-3; });
  printf("{\"label\":\"%s\",\"k\":%d,\"conns\":%d,\"body\":%d,\"n\":%d,\"rate\":%.0f,\"tokms\":%.1f,\"pipe\":%d,"
         "\"streams\":%ld,\"sps\":%.1f,\"cpu_us\":%.1f,\"util\":%.3f,\"cli_us\":%.1f,"
         "\"p50\":%.0f,\"p99\":%.0f,\"pmax\":%.0f,\"tp50\":%.0f,\"tp90\":%.0f,\"tp99\":%.0f,\"tp999\":%.0f,\"tpmax\":%.0f,"
         "\"tn\":%zu,\"tover5ms\":%ld,\"started\":%ld,\"resets\":%ld,\"disconnects\":%ld,\"lost\":%ld,"
         "\"tls\":%d,\"errs\":%ld,\"live\":%d}\n",
         LABEL.c_str(), CONCURRENCY, CONNS, BODY, CHUNKS, RATE, TOKEN_MS, PIPELINE, done, done / elapsed,
         done ? server / done * 1e6 : 0, server / elapsed, done ? own / done * 1e6 : 0, percentile_us(pick_seconds, .5),
         percentile_us(pick_seconds, .99), percentile_us(pick_seconds, 1), percentile_us(token_seconds, .5),
         percentile_us(token_seconds, .9), percentile_us(token_seconds, .99), percentile_us(token_seconds, .999),
         percentile_us(token_seconds, 1), token_seconds.size(), late, started, resets, disconnects, lost, TLS, errors,
         live);
  return errors ? 4 : 0;
}
