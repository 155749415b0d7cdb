threadgroup nx_t cells[NX_SHARED_SIZE];
threadgroup nx_int votes[1];
nx_row r;
r.c.words = words;
r.c.numbers = numbers;
r.c.cells = cells;
r.c.votes = votes;
r.c.of_block = static_cast<nx_int>(thread_position_in_threadgroup.x);
NX_OPERANDS
r.bank = r.far_bank = r.meetings = 0;
r.lane = NX_HAS(NX_COLUMNS) ? r.c.of_block / NX_ROWS : r.c.of_block % NX_LANES;
const nx_int nx_row_of_block = NX_HAS(NX_COLUMNS) ? r.c.of_block % NX_ROWS : r.c.of_block / NX_LANES;
const nx_i64 nx_blocks = static_cast<nx_i64>(threadgroups_per_grid.x);
for (nx_i64 first = static_cast<nx_i64>(threadgroup_position_in_grid.x) * NX_ROWS; first < words[NX_AT_ROWS]; first += nx_blocks * NX_ROWS) {
  nx_open(r, first + nx_row_of_block);
  NX_RUN(r);
}
