/** A gate for tests: by default of a node that is in the open network and in no other, and lets in whoever is there, too. */
import { pino } from 'pino'
import { Gate, type GateOptions } from '../agent/mesh/gate.ts'
import type { Party } from '../protocols/hello/hello.ts'

type Key = Party['key']

export function openGate(key: Key, options: Partial<GateOptions> = {}): Gate {
  return new Gate({ party: openParty(key), log: pino({ level: 'silent' }), ...options })
}

function openParty(key: Key): Party {
  const unrevoked = { faultOf: () => undefined, isRevoked: () => false }
  return { key, networks: () => [], isOpen: () => true, revocations: () => unrevoked, now: Date.now }
}
