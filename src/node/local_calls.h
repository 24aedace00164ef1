// Handlers of local requests whose header is one protobuf message, in a service whose inside is kept by what waits.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "base/ids.h"
#include "node/local_api.h"

namespace holo::node {

using LocalAnswer = Task<Result<LocalReply>>;

/// For answers that are JSON, as people's programs read them.
LocalReply json_reply(std::string json);
/// The header, decoded. Errors: `malformed`.
template <class Message>
Result<Message> decode_local(const LocalRequest& request) {
  Message m;
  if (!m.ParseFromString(request.header)) return fail(Errc::malformed, "a request that does not decode");
  return m;
}
/// A node's id as people write it, 16 hexadecimal digits; nullopt: it is none.
std::optional<NodeId> parse_node_id(const std::string& text);

template <class Message>
Result<LocalReply> local_reply(const Message& message) {
  LocalReply reply;
  reply.header = message.SerializeAsString();
  return reply;
}

/// `Impl` has `bool stopped`. `how` runs with the decoded request.
template <class Impl, class Ask>
LocalAnswer decode_and_answer(std::shared_ptr<Impl> me,
                              LocalAnswer (*how)(std::shared_ptr<Impl>, std::shared_ptr<LocalSession>, Ask),
                              std::shared_ptr<LocalSession> session, LocalRequest request) {
  HOLO_CO_ASSIGN(ask, decode_local<Ask>(request));
  if (me->stopped) co_return fail(Errc::cancelled, "the agent is stopping");
  auto answer = how(me, std::move(session), std::move(ask));
  co_return co_await answer;
}

template <class Impl, class Ask>
void serve_local(LocalApi& api, wire::LocalMessage type, std::shared_ptr<Impl> me,
                 LocalAnswer (*how)(std::shared_ptr<Impl>, std::shared_ptr<LocalSession>, Ask)) {
  api.serve(type, [me, how](std::shared_ptr<LocalSession> session, LocalRequest request) {
    return decode_and_answer(me, how, std::move(session), std::move(request));
  });
}

}  // namespace holo::node
