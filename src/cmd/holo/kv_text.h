// Keys and values as people and programs read them: lines, and JSON in both directions.
#pragma once

#include <nlohmann/json.hpp>

#include <string>

#include "base/result.h"
#include "wire/kv.pb.h"

namespace holo::cmd {

/// Every key that begins with `prefix`; an empty one: every key.
wire::KvRange prefix_range(const std::string& prefix);

/// Bytes that would break a line or a terminal as \n, \t, \\ or \xNN.
std::string kv_printable(const std::string& bytes);
/// "key<tab>value", printable.
std::string kv_line(const wire::KvPair& pair);

/// Bytes that are not UTF-8 come in base64, under "key_base64" or "value_base64".
nlohmann::json kv_json(const wire::KvPair& pair);
nlohmann::json kv_json(const wire::KvEvent& event);
nlohmann::json kv_json(const wire::KvTxnResult& result);

/// {"compare": [{"key": K, "version" | "created" | "modified" | "value": V, "is": "=" | "!=" | "<" | ">"}, ...],
///  "then": [{"put": K, "value": V} | {"get": K} | {"delete": K}, ...], "else": [...]}; get and delete take
/// "prefix": true or "end": K, put and delete "previous": true, get "limit": N. For bytes, "value_base64" instead of
/// "value". Errors: `invalid_argument`, which names the place.
Result<wire::KvTxn> parse_kv_txn(const std::string& text);

}  // namespace holo::cmd
