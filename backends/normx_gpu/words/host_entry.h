// What the emulator offers: one call of one program.

template <class Row, class Program, std::size_t size>
static int nx_emulated(const nx_call& call, const char* name, bool backward, const Program (&programs)[size],
                       void (*lane)(const nx_call&, nx_i64, void (*)(Row&))) {
  for (const Program& program : programs) {
    if (std::strcmp(program.name, name) != 0) continue;
    void (*const run)(Row&) = backward ? program.backward : program.forward;
    if (call.lanes * call.rows * call.parts > nx_most_lanes) {
      std::snprintf(nx_machine.message, sizeof nx_machine.message, "more lanes than the emulator has");
      return 1;
    }
    for (nx_i64 block = 0; block < call.grid; ++block) {
      if (!nx_machine.run(call, block, [&] { lane(call, block, run); })) return 1;
    }
    return 0;
  }
  std::snprintf(nx_machine.message, sizeof nx_machine.message, "no program is called %s", name);
  return 1;
}

extern "C" {
const char* nx_message() { return nx_machine.message; }
int nx_emulate(const char* name, int doubles, int loop, int backward, const nx_call* call) {
  if (doubles) {
    return loop ? nx_emulated(*call, name, backward, f64_loop::nx_programs, &f64_loop::nx_lane)
                : nx_emulated(*call, name, backward, f64_registers::nx_programs, &f64_registers::nx_lane);
  }
  return loop ? nx_emulated(*call, name, backward, f32_loop::nx_programs, &f32_loop::nx_lane)
              : nx_emulated(*call, name, backward, f32_registers::nx_programs, &f32_registers::nx_lane);
}
}
