#include "cmd/holo/table.h"

#include <algorithm>

namespace holo::cmd {

std::string Table::text() const {
  auto rows = rows_;
  std::vector<std::size_t> widths(rows.front().size());
  for (auto& row : rows) {
    row.resize(widths.size());
    for (std::size_t i = 0; i < row.size(); ++i) {
      std::ranges::replace_if(row[i], [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, '?');
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - row[i].size() + 2, ' ');
    }
    out += line + "\n";
  }
  return out;
}

}  // namespace holo::cmd
