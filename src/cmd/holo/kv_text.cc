#include "cmd/holo/kv_text.h"

#include <array>
#include <utility>

#include "base/strings.h"
#include "base/utf8.h"
#include "crypto/base64.h"

namespace holo::cmd {
namespace {

using nlohmann::json;

void put_bytes(json& out, const std::string& name, const std::string& bytes) {
  if (to_utf8(bytes) == bytes) {
    out[name] = bytes;
  } else {
    out[name + "_base64"] = crypto::base64_encode(as_bytes(bytes));
  }
}

Error wrong(const std::string& where, const std::string& what) {
  return {
      .code = Errc::invalid_argument, .message = where + ": " + what, .hint = "holo kv txn --help shows an example"};
}

/// The bytes under `name`, or under `name`_base64; nullopt: neither is there.
Result<std::optional<std::string>> bytes_at(const json& object, const std::string& where, const std::string& name) {
  if (const auto it = object.find(name); it != object.end()) {
    if (!it->is_string()) return std::unexpected(wrong(where, "\"" + name + "\" is not a string"));
    return it->get<std::string>();
  }
  const auto it = object.find(name + "_base64");
  if (it == object.end()) return std::nullopt;
  if (!it->is_string()) return std::unexpected(wrong(where, "\"" + name + "_base64\" is not a string"));
  const auto bytes = crypto::base64_decode(it->get<std::string>());
  if (!bytes) return std::unexpected(wrong(where, "\"" + name + "_base64\" is not base64"));
  return std::string(as_text(*bytes));
}

/// Every name in it is one of `known`, or one of those with _base64 after it.
Status only(const json& object, const std::string& where, std::initializer_list<const char*> known) {
  if (!object.is_object()) return std::unexpected(wrong(where, "is not an object"));
  for (const auto& [name, value] : object.items()) {
    const bool found = std::ranges::any_of(known, [&](std::string k) { return name == k || name == k + "_base64"; });
    if (!found) return std::unexpected(wrong(where, "there is no \"" + name + "\""));
  }
  return {};
}

Result<bool> flag_at(const json& object, const std::string& where, const char* name) {
  const auto it = object.find(name);
  if (it == object.end()) return false;
  if (!it->is_boolean()) return std::unexpected(wrong(where, str("\"", name, "\" is not true or false")));
  return it->get<bool>();
}

Result<std::uint64_t> number_of(const json& value, const std::string& where, const std::string& name) {
  if (!value.is_number_unsigned()) {
    return std::unexpected(wrong(where, "\"" + name + "\" is not a whole number from 0 on"));
  }
  return value.get<std::uint64_t>();
}

Result<wire::KvCompare> parse_compare(const json& object, const std::string& where) {
  HOLO_TRY(only(object, where, {"key", "version", "created", "modified", "value", "is"}));
  wire::KvCompare out;
  HOLO_ASSIGN(key, bytes_at(object, where, "key"));
  if (!key) return std::unexpected(wrong(where, "\"key\" is missing"));
  out.set_key(std::move(*key));
  HOLO_ASSIGN(value, bytes_at(object, where, "value"));
  int targets = 0;
  if (value) {
    out.set_target(wire::KvCompare::VALUE);
    out.set_value(std::move(*value));
    ++targets;
  }
  for (const auto& [name, target] : {std::pair{"version", wire::KvCompare::VERSION},
                                     {"created", wire::KvCompare::CREATED},
                                     {"modified", wire::KvCompare::MODIFIED}}) {
    const auto it = object.find(name);
    if (it == object.end()) continue;
    HOLO_ASSIGN(number, number_of(*it, where, name));
    out.set_target(target);
    out.set_number(number);
    ++targets;
  }
  if (targets != 1) {
    return std::unexpected(wrong(where, R"(one of "version", "created", "modified" and "value" is compared)"));
  }
  const auto is = object.value("is", json("="));
  using R = wire::KvCompare::Relation;
  for (const auto& [text, relation] : {std::pair{"=", R::KvCompare_Relation_EQUAL},
                                       {"!=", R::KvCompare_Relation_NOT_EQUAL},
                                       {"<", R::KvCompare_Relation_LESS},
                                       {">", R::KvCompare_Relation_GREATER}}) {
    if (is != text) continue;
    out.set_relation(relation);
    return out;
  }
  return std::unexpected(wrong(where, R"("is" is one of = != < >)"));
}

Result<wire::KvRange> parse_range(const json& object, const std::string& where, std::string key) {
  HOLO_ASSIGN(prefix, flag_at(object, where, "prefix"));
  HOLO_ASSIGN(end, bytes_at(object, where, "end"));
  if (prefix && end) return std::unexpected(wrong(where, "\"prefix\" and \"end\" exclude each other"));
  if (prefix) return prefix_range(key);
  wire::KvRange range;
  range.set_key(std::move(key));
  if (end) range.set_end(std::move(*end));
  return range;
}

Result<wire::KvOp> parse_op(const json& object, const std::string& where) {
  wire::KvOp out;
  HOLO_TRY(only(object, where, {"put", "get", "delete", "value", "end", "prefix", "previous", "limit"}));
  HOLO_ASSIGN(put, bytes_at(object, where, "put"));
  HOLO_ASSIGN(get, bytes_at(object, where, "get"));
  HOLO_ASSIGN(erase, bytes_at(object, where, "delete"));
  if (put.has_value() + get.has_value() + erase.has_value() != 1) {
    return std::unexpected(wrong(where, R"(it is one of "put", "get" and "delete")"));
  }
  HOLO_ASSIGN(previous, flag_at(object, where, "previous"));
  if (put) {
    HOLO_TRY(only(object, where, {"put", "value", "previous"}));
    HOLO_ASSIGN(value, bytes_at(object, where, "value"));
    if (!value) return std::unexpected(wrong(where, "\"value\" is missing"));
    out.mutable_put()->set_key(std::move(*put));
    out.mutable_put()->set_value(std::move(*value));
    out.mutable_put()->set_previous(previous);
  } else if (get) {
    HOLO_TRY(only(object, where, {"get", "end", "prefix", "limit"}));
    HOLO_ASSIGN(range, parse_range(object, where, std::move(*get)));
    *out.mutable_get()->mutable_range() = std::move(range);
    if (const auto it = object.find("limit"); it != object.end()) {
      HOLO_ASSIGN(limit, number_of(*it, where, "limit"));
      if (limit > UINT32_MAX) return std::unexpected(wrong(where, "\"limit\" is too large"));
      out.mutable_get()->set_limit(static_cast<std::uint32_t>(limit));
    }
  } else {
    HOLO_TRY(only(object, where, {"delete", "end", "prefix", "previous"}));
    HOLO_ASSIGN(range, parse_range(object, where, std::move(*erase)));
    *out.mutable_delete_()->mutable_range() = std::move(range);
    out.mutable_delete_()->set_previous(previous);
  }
  return out;
}

/// Calls f(element, "name 3") for each of the list under `name`, when it is there.
template <class F>
Status for_each(const json& object, const char* name, F f) {
  const auto it = object.find(name);
  if (it == object.end()) return {};
  if (!it->is_array()) return std::unexpected(wrong(name, "is not a list"));
  std::size_t n = 0;
  for (const json& element : *it) HOLO_TRY(f(element, str(name, " ", ++n)));
  return {};
}

}  // namespace

wire::KvRange prefix_range(const std::string& prefix) {
  wire::KvRange range;
  range.set_key(prefix.empty() ? std::string(1, '\0') : prefix);
  std::string end = prefix;
  while (!end.empty() && end.back() == '\xff') end.pop_back();
  if (end.empty()) {
    end.push_back('\0');  // To the last key.
  } else {
    end.back() = static_cast<char>(end.back() + 1);
  }
  range.set_end(std::move(end));
  return range;
}

std::string kv_printable(const std::string& bytes) {
  static constexpr std::array<char, 17> kHex{"0123456789abcdef"};
  const bool text = to_utf8(bytes) == bytes;
  std::string out;
  for (const char c : bytes) {
    const auto b = static_cast<unsigned char>(c);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\\') {
      out += "\\\\";
    } else if (b < 0x20 || b == 0x7f || (b >= 0x80 && !text)) {
      out += {'\\', 'x', kHex[b >> 4], kHex[b & 15]};
    } else {
      out += c;
    }
  }
  return out;
}

std::string kv_line(const wire::KvPair& pair) { return kv_printable(pair.key()) + "\t" + kv_printable(pair.value()); }

json kv_json(const wire::KvPair& pair) {
  json out;
  put_bytes(out, "key", pair.key());
  put_bytes(out, "value", pair.value());
  out["created"] = pair.created();
  out["modified"] = pair.modified();
  out["version"] = pair.version();
  if (pair.lease() != 0) out["lease"] = pair.lease();
  return out;
}

json kv_json(const wire::KvEvent& event) {
  if (!event.deleted()) {
    json out = kv_json(event.pair());
    out["event"] = "put";
    return out;
  }
  json out{{"event", "delete"}, {"modified", event.pair().modified()}};
  put_bytes(out, "key", event.pair().key());
  return out;
}

json kv_json(const wire::KvTxnResult& result) {
  json results = json::array();
  for (const auto& r : result.results()) {
    json pairs = json::array();
    for (const auto& pair : r.pairs()) pairs.push_back(kv_json(pair));
    results.push_back({{"pairs", std::move(pairs)}, {"deleted", r.deleted()}, {"more", r.more()}});
  }
  return {{"succeeded", result.succeeded()}, {"revision", result.revision()}, {"results", std::move(results)}};
}

Result<wire::KvTxn> parse_kv_txn(const std::string& text) {
  const json object = json::parse(text, nullptr, false);
  if (object.is_discarded()) return std::unexpected(wrong("the transaction", "is not JSON"));
  HOLO_TRY(only(object, "the transaction", {"compare", "then", "else"}));
  wire::KvTxn out;
  HOLO_TRY(for_each(object, "compare", [&](const json& element, const std::string& where) -> Status {
    HOLO_ASSIGN(compare, parse_compare(element, where));
    *out.add_compares() = std::move(compare);
    return {};
  }));
  for (const char* branch : {"then", "else"}) {
    HOLO_TRY(for_each(object, branch, [&](const json& element, const std::string& where) -> Status {
      HOLO_ASSIGN(op, parse_op(element, where));
      *(branch == std::string_view("then") ? out.add_then() : out.add_otherwise()) = std::move(op);
      return {};
    }));
  }
  return out;
}

}  // namespace holo::cmd
