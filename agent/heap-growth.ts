/**
 * Lets V8's heap grow to three times of what was alive in it before all of it is looked through, for the daemon. V8 counts the buffers that pass through
 * an agent as growth, and after some idle seconds allows but a third more than there is: then each burst of traffic began with ten such looks, which
 * took more of the machine than the traffic. bench/forward.ts, whose turns are seconds apart, shows it. An idle agent with three peers has 135 MB in place
 * of 132: V8 still looks through its heap when it has nothing else to do.
 */
import { setFlagsFromString } from 'node:v8'

export function letHeapGrow(): void {
  setFlagsFromString('--heap-growing-percent=200')
}
