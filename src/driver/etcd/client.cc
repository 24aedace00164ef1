#include "driver/etcd/client.h"

#include <curl/curl.h>

#include <atomic>
#include <charconv>
#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>

#include "base/strings.h"
#include "crypto/base64.h"

namespace holo::driver::etcd {
namespace {

using nlohmann::json;

constexpr long kConnectMs = 1000;
constexpr std::size_t kMaxAnswer = 256 << 20;
constexpr std::size_t kMaxLine = 8 << 20;

// Codes of gRPC that some caller reacts to.
constexpr int kDeadline = 4, kPermission = 7, kExhausted = 8, kUnavailable = 14, kUnauthenticated = 16, kTooLarge = 3;

struct FreeHandle {
  void operator()(CURL* c) const { curl_easy_cleanup(c); }
};
struct FreeMulti {
  void operator()(CURLM* m) const { curl_multi_cleanup(m); }
};
struct FreeList {
  void operator()(curl_slist* l) const { curl_slist_free_all(l); }
};

void init_library() {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
}

Error error_of(const std::string& url, long status, const std::string& body) {
  const json said = json::parse(body, nullptr, false);
  const bool object = said.is_object();
  const int code = object && said.contains("code") && said["code"].is_number() ? said["code"].get<int>() : 0;
  std::string what = object && said.contains("error") && said["error"].is_string() ? said["error"].get<std::string>()
                                                                                   : str("status ", status);
  const bool too_large = what.find("too large") != std::string::npos;
  what = str("etcd at ", url, ": ", what);
  switch (code) {
    case kDeadline: return {.code = Errc::deadline_exceeded, .message = what, .hint = {}, .retryable = true};
    case kUnavailable: return {.code = Errc::unavailable, .message = what, .hint = {}, .retryable = true};
    case kExhausted:
      return {.code = Errc::over_limit,
              .message = what,
              .hint = "etcdctl compact, defrag and alarm disarm make room; --auto-compaction-retention keeps it"};
    case kPermission:
    case kUnauthenticated: return {.code = Errc::permission_denied, .message = what};
    case kTooLarge:
      if (too_large) return {.code = Errc::over_limit, .message = what};
      [[fallthrough]];
    default: return {.code = Errc::internal, .message = what};
  }
}

}  // namespace

struct Client::Impl {
  Endpoints endpoints;
  std::size_t next = 0;  ///< The endpoint that answered last.
  std::unique_ptr<curl_slist, FreeList> headers;
  std::unique_ptr<CURLM, FreeMulti> multi;  ///< Of one transfer at a time: unlike the plain calls it can be woken.
  std::unique_ptr<CURL, FreeHandle> handle;
  std::atomic<bool> aborted = false;

  struct Answer {
    std::string body;
    bool too_long = false;
  };
  struct Stream {
    const std::function<void(std::string)>* on_line = nullptr;
    std::string part;
  };

  static std::size_t collect(char* data, std::size_t, std::size_t n, void* out) {
    auto* answer = static_cast<Answer*>(out);
    if (answer->body.size() + n > kMaxAnswer) {
      answer->too_long = true;
      return 0;
    }
    answer->body.append(data, n);
    return n;
  }
  static std::size_t take_lines(char* data, std::size_t, std::size_t n, void* out) {
    auto* s = static_cast<Stream*>(out);
    s->part.append(data, n);
    for (std::size_t end = 0; (end = s->part.find('\n')) != std::string::npos; s->part.erase(0, end + 1)) {
      (*s->on_line)(s->part.substr(0, end));
    }
    return s->part.size() > kMaxLine ? 0 : n;
  }
  /// Until the transfer is over, or abort().
  CURLcode perform() {
    constexpr int kLookMs = 60'000;  // It is woken by whatever happens.
    CURLcode code = CURLE_ABORTED_BY_CALLBACK;
    if (curl_multi_add_handle(multi.get(), handle.get()) != CURLM_OK) return CURLE_FAILED_INIT;
    for (int running = 1; !aborted;) {
      if (curl_multi_perform(multi.get(), &running) != CURLM_OK) break;
      if (running == 0) {
        int left = 0;
        if (const CURLMsg* m = curl_multi_info_read(multi.get(), &left); m != nullptr) code = m->data.result;
        break;
      }
      if (curl_multi_poll(multi.get(), nullptr, 0, kLookMs, nullptr) != CURLM_OK) break;
    }
    curl_multi_remove_handle(multi.get(), handle.get());
    return code;
  }

  void prepare(const std::string& url, const std::string& body) {
    CURL* c = handle.get();
    curl_easy_reset(c);  // Connections are kept.
    curl_easy_setopt(c, CURLOPT_URL, url.c_str());
    curl_easy_setopt(c, CURLOPT_POSTFIELDS, body.data());
    curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers.get());
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, kConnectMs);
    curl_easy_setopt(c, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(c, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_NOPROXY, "*");
    if (!endpoints.ca_file.empty()) curl_easy_setopt(c, CURLOPT_CAINFO, endpoints.ca_file.c_str());
    if (!endpoints.certificate_file.empty()) {
      curl_easy_setopt(c, CURLOPT_SSLCERT, endpoints.certificate_file.c_str());
      curl_easy_setopt(c, CURLOPT_SSLKEY, endpoints.key_file.c_str());
    }
  }
};

Client::Client(Endpoints endpoints) : impl_(std::make_unique<Impl>()) {
  init_library();
  impl_->endpoints = std::move(endpoints);
  impl_->multi.reset(curl_multi_init());
  impl_->handle.reset(curl_easy_init());
  impl_->headers.reset(curl_slist_append(nullptr, "Content-Type: application/json"));
}
Client::~Client() = default;
void Client::abort() {
  impl_->aborted = true;
  curl_multi_wakeup(impl_->multi.get());  // Counts for the next wait, too, if none is under way.
}

Result<nlohmann::json> Client::call(const std::string& path, const nlohmann::json& body, Duration timeout) {
  const std::string text = body.dump();
  const auto until = std::chrono::steady_clock::now() + std::chrono::nanoseconds(timeout.ns);
  Error last{.code = Errc::unavailable, .message = "no etcd endpoint is configured"};
  for (std::size_t i = 0; i < impl_->endpoints.urls.size(); ++i) {
    const std::size_t at = (impl_->next + i) % impl_->endpoints.urls.size();
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0) break;
    if (impl_->aborted) return fail(Errc::cancelled, "the agent is stopping");
    Impl::Answer answer;
    impl_->prepare(impl_->endpoints.urls[at] + path, text);
    CURL* c = impl_->handle.get();
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, static_cast<long>(left.count()));
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, &Impl::collect);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &answer);
    const CURLcode code = impl_->perform();
    if (code != CURLE_OK) {
      const bool late = code == CURLE_OPERATION_TIMEDOUT;
      last = {.code = late ? Errc::deadline_exceeded : Errc::unavailable,
              .message = str("etcd at ", impl_->endpoints.urls[at], ": ",
                             answer.too_long ? "an answer without end" : curl_easy_strerror(code)),
              .hint = "is it running? control_endpoints names it",
              .retryable = true};
      continue;
    }
    long status = 0;
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200) {
      last = error_of(impl_->endpoints.urls[at], status, answer.body);
      if (last.code == Errc::unavailable || last.code == Errc::deadline_exceeded) continue;  // That one has no leader.
      impl_->next = at;
      return std::unexpected(last);
    }
    impl_->next = at;
    json parsed = json::parse(answer.body, nullptr, false);
    if (!parsed.is_object()) return fail(Errc::malformed, "etcd's answer is not JSON");
    return parsed;
  }
  return std::unexpected(last);
}

Status Client::stream(const std::string& path, const nlohmann::json& body,
                      const std::function<void(std::string)>& on_line) {
  const std::string text = body.dump();
  if (impl_->endpoints.urls.empty()) return fail(Errc::unavailable, "no etcd endpoint is configured");
  Impl::Stream stream{.on_line = &on_line, .part = {}};
  const std::string& url = impl_->endpoints.urls[impl_->next % impl_->endpoints.urls.size()];
  impl_->prepare(url + path, text);
  CURL* c = impl_->handle.get();
  curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, &Impl::take_lines);
  curl_easy_setopt(c, CURLOPT_WRITEDATA, &stream);
  const CURLcode code = impl_->perform();
  impl_->next = (impl_->next + 1) % impl_->endpoints.urls.size();  // Next time another one.
  if (code == CURLE_OK) return fail(Errc::unavailable, "etcd ended the watch");
  return fail(Errc::unavailable, str("etcd at ", url, ": ", curl_easy_strerror(code)));
}

Result<std::vector<std::string>> parse_endpoints(const std::string& text) {
  std::vector<std::string> out;
  for (std::string_view rest = text; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    std::string one(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    while (one.ends_with('/')) one.pop_back();
    const bool known = one.starts_with("http://") || one.starts_with("https://");
    if (!known || one.size() <= 8 || one.find(' ') != std::string::npos) {
      return fail(Errc::invalid_argument, str("\"", one, "\" is no etcd endpoint"),
                  "http://HOST:2379, or several with commas");
    }
    out.push_back(std::move(one));
  }
  return out;
}

std::string encode(ByteSpan bytes) { return crypto::base64_encode(bytes); }
std::string encode(std::string_view text) { return crypto::base64_encode(as_bytes(text)); }

Result<Bytes> decode(const nlohmann::json& object, const char* field) {
  if (!object.contains(field)) return Bytes();
  if (!object[field].is_string()) return fail(Errc::malformed, str("etcd's answer has a strange ", field));
  return crypto::base64_decode(object[field].get_ref<const std::string&>());
}

std::uint64_t number(const nlohmann::json& object, const char* field) {
  if (!object.contains(field)) return 0;
  const nlohmann::json& v = object[field];
  if (v.is_number_unsigned()) return v.get<std::uint64_t>();
  if (!v.is_string()) return 0;
  const auto& text = v.get_ref<const std::string&>();
  std::uint64_t out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}

}  // namespace holo::driver::etcd
