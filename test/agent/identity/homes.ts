/** Nodes as far as identity goes: a key, a state directory of its own, a clock that the test sets. What the tests of identity are made of. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { Invitations, type Redeemed } from '../../../agent/identity/invitations.ts'
import { Issuer, type Roll } from '../../../agent/identity/issuing.ts'
import type { Membership } from '../../../agent/identity/membership.ts'
import { Networks } from '../../../agent/identity/networks.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { type Key, makeKey, NOW } from '../../protocols/membership/people.ts'
import { type Clock, clockAt, keptLog } from '../catalog/catalog.ts'

export { NOW }
export const DAY = 24 * 3_600_000
/** Of scrypt, so that a test takes no second. */
export const QUICK = 10

export type Home = ReturnType<typeof open>

/** Opens what is in the directory, as a start does. */
function open({ directory, key, clock, roll }: { directory: string; key: Key; clock: Clock; roll?: Roll }) {
  const db = openDatabase(join(directory, 'state.db'))
  const log = keptLog()
  const redeemed: Redeemed[] = []
  const networks = new Networks({ db, directory: join(directory, 'networks'), key, now: clock.now, log })
  const issuer = new Issuer({ db, now: clock.now, roll: () => roll })
  const onRedeemed = (one: Redeemed) => void redeemed.push(one)
  const invitations = new Invitations({ db, networks, issuer, now: clock.now, onRedeemed })
  const home = { directory, db, key, clock, log, networks, issuer, invitations, redeemed }
  return {
    ...home,
    /** Ends as kill -9 does, and starts again on what is there. */
    restart: (changed: { key?: Key } = {}) => {
      db.close()
      return open({ directory, key, clock, ...(roll && { roll }), ...changed })
    },
  }
}

export function makeHome({ clock = clockAt(NOW), roll }: { clock?: Clock; roll?: Roll } = {}): Home {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-identity-'))
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }))
  return open({ directory, key: makeKey(), clock, ...(roll && { roll }) })
}

/** A home with a network that it made. */
export function makeFounder(options: Parameters<typeof makeHome>[0] = {}): Home & { net: Membership } {
  const home = makeHome(options)
  return { ...home, net: home.networks.create('lab', { memberName: 'founder' }) }
}

/** Lets `guest` into the founder's network by an invitation. */
export function letIn(
  founder: Home & { net: Membership },
  guest: Home,
  { name, labels = {} }: { name?: string; labels?: Record<string, string> } = {},
): Membership {
  const { net, invitations, clock } = founder
  const { invitation } = invitations.create({
    membership: net,
    addresses: [],
    name,
    labels,
    expires: clock.now() + DAY,
  })
  const grant = invitations.redeem(Buffer.from(invitation.id, 'hex'), guest.key.publicKey)
  if (typeof grant === 'string') throw new Error(grant)
  return guest.networks.join({ network: net.network, ...grant })
}
