# An object of one instruction set may define its table and nothing else that a linker sees. A weak symbol (an inline function
# or a template outside the unnamed namespace) could be merged with its namesake from another object, and end up executing
# this instruction set's code on a machine without it.
execute_process(COMMAND ${NM} -C --defined-only ${OBJECT} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]* [A-Zuvw] [^\n]*" visible "${symbols}")
set(expected " normx::table_${ISA}$")
if(NOT visible MATCHES "${expected}" OR visible MATCHES " [WVuvw] ")
  message(FATAL_ERROR "visible symbols of the ${ISA} object:\n${visible}")
endif()
list(LENGTH visible count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "the ${ISA} object shows more than its table:\n${visible}")
endif()
