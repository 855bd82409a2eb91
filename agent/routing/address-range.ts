/**
 * The part of 127.0.0.0/8 that is this agent's: on Linux every address of it is this machine's own, and takes no root to listen on.
 *
 * Agents on one machine must not share a range, so an agent claims its own by listening at its first address for as long as it runs. Which
 * one follows from its peer id, unless the configuration says; when that is another's, the next one is taken, and kept from then on.
 */
import { createHash } from 'node:crypto'
import { createServer, type Server } from 'node:net'
import type { AddressRange } from '../config/values.ts'
import { AgentError, reasonOf } from '../error.ts'
import { type Database, migrate } from '../state/database.ts'

/** Ranges are 127.64.0.0/16 to 127.191.0.0/16: what other programs use of loopback is mostly below. */
const FIRST_OCTET = 64
const RANGES = 128
/** Nobody needs to connect to it; the port of names is the agent's own. */
const CLAIM_PORT = 7453

const STEPS = ['CREATE TABLE address_range (id INTEGER PRIMARY KEY CHECK (id = 1), base INTEGER NOT NULL) STRICT']

export class ClaimedRange implements AsyncDisposable {
  readonly range: AddressRange
  readonly #claim: Server

  private constructor(range: AddressRange, claim: Server) {
    this.range = range
    this.#claim = claim
  }

  /**
   * Claims the range that is given, or one of its own.
   *
   * @throws {AgentError} `taken` when another agent has it.
   */
  static async claim(db: Database, peerId: string, given: AddressRange | undefined): Promise<ClaimedRange> {
    migrate(db, 'address-range', STEPS)
    const ranges = given === undefined ? candidates(db, peerId) : [given]
    let reason = ''
    for (const range of ranges) {
      try {
        const claim = await listen(textOf(range.base + 1))
        if (given === undefined)
          db.prepare('INSERT OR REPLACE INTO address_range (id, base) VALUES (1, ?)').run(range.base)
        return new ClaimedRange(range, claim)
      } catch (error) {
        reason = reasonOf(error)
      }
    }
    const what = given === undefined ? 'no range of loopback addresses is free' : `${showRange(given)} is not free`
    throw new AgentError('taken', `${what} for the names of services: ${reason}`, {
      next: 'Is another agent using it? Choose one with --addresses 127.X.0.0/16, or turn names off with --dns off.',
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise((resolve) => this.#claim.close(resolve))
  }
}

/** Whether this agent ever had a range of its own. */
export function isClaimed(db: Database): boolean {
  migrate(db, 'address-range', STEPS)
  return db.prepare('SELECT 1 FROM address_range').get() !== undefined
}

/** The one that it had, then the others, beginning with the one that follows from its id. */
function candidates(db: Database, peerId: string): AddressRange[] {
  const row = db.prepare('SELECT base FROM address_range').get() as { base: number } | undefined
  const first = createHash('sha256').update(peerId).digest().readUInt16BE(0)
  const derived = Array.from({ length: RANGES }, (_, nth) => rangeOf(FIRST_OCTET + ((first + nth) % RANGES)))
  return row === undefined ? derived : [{ base: row.base, bits: 16 }, ...derived]
}

function rangeOf(octet: number): AddressRange {
  return { base: 127 * 2 ** 24 + octet * 2 ** 16, bits: 16 }
}

async function listen(host: string): Promise<Server> {
  const server = createServer((socket) => socket.destroy())
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen({ host, port: CLAIM_PORT, exclusive: true }, resolve)
  })
  return server
}

/** How many addresses it has that can be given to names: not its first (the network), second (the claim) and last. */
export function sizeOf({ bits }: AddressRange): number {
  return 2 ** (32 - bits) - 3
}

export function addressAt({ base }: AddressRange, nth: number): string {
  return textOf(base + 2 + nth)
}

/** Which of the range's addresses it is; undefined for all others. */
export function placeOf(range: AddressRange, address: string): number | undefined {
  const octets = address.split('.').map(Number)
  if (octets.length !== 4 || octets.some((octet) => !Number.isInteger(octet) || octet < 0 || octet > 255))
    return undefined
  const nth = octets.reduce((sum, octet) => sum * 256 + octet, 0) - range.base - 2
  return nth >= 0 && nth < sizeOf(range) ? nth : undefined
}

export function showRange({ base, bits }: AddressRange): string {
  return `${textOf(base)}/${bits}`
}

/** The zone of names of its addresses: RFC 1035, section 3.5. */
export function reverseZone({ base, bits }: AddressRange): string {
  return `${textOf(base)
    .split('.')
    .slice(0, bits / 8)
    .reverse()
    .join('.')}.in-addr.arpa`
}

function textOf(address: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(address / 2 ** shift) % 256).join('.')
}
