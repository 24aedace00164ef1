// The files in which a clean stop leaves a node's pages: encrypted, each page authenticated with its name.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/result.h"
#include "crypto/aead.h"
#include "env/entropy.h"

namespace holo::node {

struct PageName {
  RegionId region;
  PageNo page;
  Version version;
  friend auto operator<=>(const PageName&, const PageName&) = default;
};

/// One directory of such files. Blocking: its calls belong on helper threads, any number at once after open().
class PageFiles {
 public:
  struct Owner {
    ClusterId cluster;
    NodeId node;
  };
  /// Reads the indexes under `directory`/pages. Files that are damaged or belong to another node or cluster are left
  /// out and named in `damaged`; a page that they held is then simply not here. Creates the key on first use. Errors:
  /// `io_error`, `permission_denied`, `corrupt` (the key file).
  static Result<std::unique_ptr<PageFiles>> open(const std::string& directory, Owner owner, env::Entropy& entropy,
                                                 std::vector<std::string>& damaged);

  [[nodiscard]] bool has(const PageName& name) const { return entries_.contains(name); }
  [[nodiscard]] std::size_t size() const { return entries_.size(); }
  /// Errors: `not_found`, `corrupt` (names file and page), `io_error`.
  [[nodiscard]] Result<Buffer> load(const PageName& name) const;

  /// A set of files being written; the old set stays until commit().
  class Writer {
   public:
    virtual ~Writer() = default;
    /// Appends to file `index`; one thread per file.
    virtual Status add(std::size_t index, const PageName& name, ByteSpan bytes) = 0;
    /// Ends file `index`.
    virtual Status finish(std::size_t index) = 0;
    /// Makes the set current, in place of the old one.
    virtual Status commit() = 0;
  };
  /// Errors: `io_error` (disk full, ...).
  Result<std::unique_ptr<Writer>> write(std::size_t files);

 private:
  struct Place {
    std::shared_ptr<const int> fd;
    std::string file;
    std::uint64_t offset = 0;
    std::uint32_t length = 0;
    std::string nonce;
  };
  struct FileWriter;
  PageFiles(std::string directory, Owner owner, env::Entropy& entropy, const crypto::AeadKey& key);
  Status read_index(const std::string& path, std::uint64_t& stamp, std::uint32_t& files);

  std::string directory_;
  Owner owner_;
  env::Entropy& entropy_;
  crypto::Aead aead_;
  std::map<PageName, Place> entries_;
};

}  // namespace holo::node
