// One program: the agent and every command. main() shows all of it.
#include "cmd/holo/command_line.h"
#include "wire/protobuf_log.h"

int main(int argc, char** argv) {
  holo::wire::route_protobuf_log();
  holo::cmd::CommandLine line;
  add_agent_commands(line);
  add_cluster_commands(line);
  add_status_command(line);
  add_inventory_command(line);
  add_ping_command(line);
  add_placement_commands(line);
  add_qlog_commands(line);
  add_region_commands(line);
  add_kv_commands(line);
  add_lock_commands(line);
  add_control_commands(line);
  add_control_repair_command(line);
  add_run_command(line);
  add_dev_commands(line);
  add_bench_commands(line);
  add_doctor_command(line);
  add_config_commands(line);
  add_trust_commands(line);
  return line.run(argc, argv);
}
