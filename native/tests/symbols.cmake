cmake_policy(SET CMP0057 NEW)  # IN_LIST
# The objects of one instruction set may define their tables and nothing else that a linker sees. A weak symbol (an inline
# function or a template outside the unnamed namespace) could be merged with its namesake from another object, and end up
# executing this instruction set's code on a machine without it.
string(REPLACE "," ";" objects "${OBJECTS}")
set(tables table_${ISA} programs_${ISA} run_rows_${ISA} topk_${ISA} vjps_${ISA})
foreach(object IN LISTS objects)
  execute_process(COMMAND ${NM} -C --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [A-Zuvw] [^\n]*" visible "${symbols}")
  foreach(symbol IN LISTS visible)
    string(REGEX REPLACE "^.* normx::" "" name "${symbol}")
    if(NOT name IN_LIST tables)
      message(FATAL_ERROR "${object} shows more than its tables: ${symbol}")
    endif()
    list(REMOVE_ITEM tables "${name}")
  endforeach()
endforeach()
if(tables)
  message(FATAL_ERROR "no object of ${ISA} defines ${tables}")
endif()
