// Columns that line up.
#pragma once

#include <string>
#include <vector>

namespace holo::cmd {

class Table {
 public:
  explicit Table(std::vector<std::string> head) : rows_{std::move(head)} {}
  /// As many cells as the head has.
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  /// One line per row; control characters in cells become "?", so that names cannot draw on the terminal.
  [[nodiscard]] std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace holo::cmd
