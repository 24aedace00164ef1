#include "node/local_calls.h"

#include <charconv>

#include "wire/local.pb.h"

namespace holo::node {

LocalReply json_reply(std::string json) {
  wire::AdminJson message;
  message.set_json(std::move(json));
  LocalReply reply;
  reply.header = message.SerializeAsString();
  return reply;
}

std::optional<NodeId> parse_node_id(const std::string& text) {
  NodeId id;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, id.value, 16);
  if (text.size() != 16 || error != std::errc{} || at != end || !id) return std::nullopt;
  return id;
}

}  // namespace holo::node
