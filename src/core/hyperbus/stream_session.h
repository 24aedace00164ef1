// A session over an ordered byte stream: TCP, or anything that behaves like it.
#pragma once

#include <memory>
#include <vector>

#include "core/hyperbus/session.h"

namespace holo::hyperbus {

class StreamSession final : public Session {
 public:
  /// `expected`: for an initiator, the only node that may answer (0: any). `entropy` must outlive the session.
  StreamSession(Role role, std::shared_ptr<const SessionConfig> config, env::Entropy& entropy, Instant now,
                NodeId expected = {});
  ~StreamSession() override;

  /// Takes what the carrier received, in any portions. The span is not kept. Bytes after the end are ignored.
  void feed(Instant now, ByteSpan bytes);
  /// The carrier broke or was closed by the other side. Nothing more will be written.
  void broken(Instant now, Error error);

  /// Appends encrypted bytes for the carrier to `out`, in order: `max_bytes`, plus at most 72 KiB. What is asked for
  /// late is prioritised late, so ask only for what the carrier takes soon. The buffers stay valid while they are held,
  /// also after the session is gone; release them on the session's thread. Makes no events.
  void output(Instant now, std::size_t max_bytes, std::vector<Buffer>& out);
  /// True when output() would give something.
  [[nodiscard]] bool wants_output() const;

  [[nodiscard]] bool finished() const override;
  [[nodiscard]] Instant next_timer() override;
  void on_timer(Instant now) override;
  void close(Error error) override;
  [[nodiscard]] LinkFigures figures() const override;
  void ping(Instant now) override;

 private:
  struct Impl;
  Result<StreamNumber> open_stream(bool bidirectional) override;
  void abandon_stream(StreamNumber stream) override;

  std::unique_ptr<Impl> impl_;
};

}  // namespace holo::hyperbus
