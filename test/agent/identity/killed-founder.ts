/**
 * A process that makes networks, invites, lets in, revokes, exports nothing and leaves, as fast as it can, and prints each step that it was
 * told is done, until somebody kills it. Argument: the state directory.
 */
import { writeSync } from 'node:fs'
import { join } from 'node:path'
import { Invitations } from '../../../agent/identity/invitations.ts'
import { Issuer } from '../../../agent/identity/issuing.ts'
import { Networks } from '../../../agent/identity/networks.ts'
import { loadOrMakeNodeKey } from '../../../agent/identity/node-key.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { tokenId } from '../../../protocols/membership/token.ts'
import { hex, makeKey } from '../../protocols/membership/people.ts'
import { keptLog } from '../catalog/catalog.ts'

const [directory = ''] = process.argv.slice(2)
const key = loadOrMakeNodeKey(join(directory, 'node.key'))
const db = openDatabase(join(directory, 'state.db'))
const networks = new Networks({ db, directory: join(directory, 'networks'), key, log: keptLog() })
const issuer = new Issuer({ db })
const invitations = new Invitations({ db, networks, issuer })
const say = (...words: string[]) => void writeSync(1, `${words.join(' ')}\n`)

for (let nth = 0; ; nth++) {
  const net = networks.create(`n${process.pid}-${nth}`, { memberName: 'founder' })
  say('made', net.id)
  const { token } = invitations.create({ membership: net, addresses: [], expires: Date.now() + 3_600_000 })
  const [guest, other] = [makeKey().publicKey, makeKey().publicKey]
  const id = tokenId(token.secret)
  if (typeof invitations.redeem(id, guest) === 'string') throw new Error('the token was not good')
  say('used', net.id, hex(id), hex(guest))
  issuer.revoke(net, { key: other, scope: 'member' })
  say('revoked', net.id, hex(other))
  issuer.setPolicy(net, [])
  say('policy', net.id)
  say('leaving', net.id)
  if (nth % 4 !== 0 || networks.list().length > 12) {
    networks.leave(net.id, { force: true })
    say('left', net.id)
  }
  while (networks.list().length > 14) {
    const [first] = networks.list()
    if (first === undefined) break
    say('leaving', first.id)
    networks.leave(first.id, { force: true })
    say('left', first.id)
  }
}
