#include "cmd/holo/command_line.h"

#include <unistd.h>

#include <iostream>
#include <vector>

#include "base/strings.h"
#include "cmd/holo/units.h"

namespace holo::cmd {
namespace {

std::vector<std::string> names_of(const CLI::App& app) {
  std::vector<std::string> out;
  for (const auto* sub : app.get_subcommands(nullptr)) out.push_back(sub->get_name());
  return out;
}

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> out;
  for (const auto* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) out.push_back("--" + name);
    for (const auto& name : option->get_snames()) out.push_back("-" + name);
  }
  return out;
}

CLI::App& innermost(CLI::App& app) {
  const auto chosen = app.get_subcommands();
  return chosen.empty() ? app : innermost(*chosen.front());
}

std::string path_of(const CLI::App& app) {
  return app.get_parent() ? path_of(*app.get_parent()) + " " + app.get_name() : "holo";
}

/// The usage as it is typed, from `holo` to what comes after the options.
class UsageFormatter : public CLI::Formatter {
 public:
  explicit UsageFormatter(std::string rest = {}) : rest_(std::move(rest)) {}
  std::string make_usage(const CLI::App* app, std::string) const override {
    auto usage = CLI::Formatter::make_usage(app, path_of(*app));
    if (!rest_.empty()) usage.insert(usage.find_last_not_of('\n') + 1, " " + rest_);
    return usage;
  }

 private:
  std::string rest_;
};

std::string suggestion(std::string_view typed, const std::vector<std::string>& candidates, const CLI::App& app) {
  const auto meant = nearest(typed, candidates);
  return meant.empty() ? path_of(app) + " --help shows what there is" : str("did you mean ", meant, "?");
}

}  // namespace

CLI::Validator above_zero() {
  return CLI::Validator(
      [](std::string& text) {
        double value = 0;
        const bool number = CLI::detail::lexical_cast(text, value);
        return number && value > 0 ? std::string() : "\"" + text + "\" is not above 0";
      },
      "");
}

void starts_program(CLI::App& app, const std::string& usage) {
  app.prefix_command();
  app.formatter(std::make_shared<UsageFormatter>(usage));
}

CommandLine::CommandLine() : root_("holo: one memory and one computer out of many machines", "holo") {
  root_.formatter(std::make_shared<UsageFormatter>());  // Of all commands that are added.
  root_.require_subcommand(1, 1);
  root_.footer("Each command's --help shows an example. Start here: holo dev up -n 4, then holo status.");
}

CLI::App& CommandLine::add(CLI::App& parent, const std::string& name, const std::string& help,
                           const std::string& example, Run run) {
  auto* app = parent.add_subcommand(name, help);
  app->footer("Example:\n  " + example);
  if (run) {
    app->callback([this, run = std::move(run)] { selected_ = run; });
  } else {
    app->require_subcommand(1, 1);
  }
  return *app;
}

Outcome<void> CommandLine::check_commands(int argc, char** argv) {
  auto* app = &root_;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto names = names_of(*app);
    if (names.empty() || word.starts_with('-')) return {};  // Its options are CLI11's to judge.
    CLI::App* next = nullptr;
    for (auto* sub : app->get_subcommands(nullptr)) {
      if (sub->get_name() == word) next = sub;
    }
    if (!next) return usage(str("unknown command \"", word, "\" of ", path_of(*app)), suggestion(word, names, *app));
    app = next;
  }
  if (const auto names = names_of(*app); !names.empty() && app->get_require_subcommand_min() > 0) {
    std::string list;
    for (const auto& name : names) list += (list.empty() ? "" : ", ") + name;
    return usage(str(path_of(*app), " needs a command"), "one of " + list);
  }
  return {};
}

Failure CommandLine::explain(const CLI::ParseError& error) {
  auto& app = innermost(root_);
  std::string message = error.what();
  std::string hint = path_of(app) + " --help shows an example";
  if (dynamic_cast<const CLI::ExtrasError*>(&error)) {
    const auto rest = app.remaining();
    const std::string first = rest.empty() ? "" : rest.front();
    if (first.starts_with('-')) {
      message = str("unknown flag ", first, " of ", path_of(app));
      hint = suggestion(first, flags_of(app), app);
    } else {
      message = str("unexpected argument \"", first, "\" of ", path_of(app));
    }
  }
  return {Error{.code = Errc::invalid_argument, .message = message, .hint = hint}, kUsage};
}

int CommandLine::run(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << root_.help();
    return kUsage;
  }
  if (auto known = check_commands(argc, argv); !known) return report(known.error());
  // CLI11 gives "--" to nobody; the program that holo run or holo lock starts may need it.
  std::vector<const char*> arguments(argv, argv + argc);
  const std::string_view command = argv[1];
  const bool program_follows = command == "run" || command == "lock";
  for (const char*& argument : arguments) {
    if (program_follows && std::string_view(argument) == "--") argument = kDashDash;
  }
  try {
    root_.parse(argc, arguments.data());
  } catch (const CLI::CallForHelp&) {
    std::cout << innermost(root_).help();
    return kDone;
  } catch (const CLI::ParseError& error) {
    return report(explain(error));
  }
  auto outcome = selected_();
  if (!outcome) return report(outcome.error());
  // A full disk or a closed pipe behind standard output must not look like success.
  std::cout.flush();
  if (std::fflush(stdout) != 0 || !std::cout) {
    return report(Failure(Error{.code = Errc::io_error, .message = "cannot write to standard output"}));
  }
  return *outcome;
}

}  // namespace holo::cmd
