/** Networks of a node: made, joined, left, kept across restarts; and what is never shown. */
import { readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { inspect } from 'node:util'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import type { NetworkChange } from '../../../agent/identity/networks.ts'
import { WireError } from '../../../protocols/error.ts'
import { OPEN_NETWORK } from '../../../protocols/records/record.ts'
import { converse } from '../../protocols/hello/conversation.ts'
import { makeKey, TestNetwork } from '../../protocols/membership/people.ts'
import { DAY, letIn, makeFounder, makeHome, NOW } from './homes.ts'

const files = (directory: string) => readdirSync(join(directory, 'networks')).sort()

describe('a new network', () => {
  it('has its maker as a member who may sign everything, a policy, and a root key for the owner only', () => {
    const { net, directory } = makeFounder()
    expect(net.self).toMatchObject({ name: 'founder', labels: {} })
    expect(net.fault()).toBeUndefined()
    for (const right of ['issue', 'revoke', 'policy'] as const) expect(net.can(right)?.delegation).toBeUndefined()
    expect(net.can('issue')?.signer.publicKey).toEqual(net.self.issuer)
    expect(net.policy?.statement).toMatchObject({ version: 1 })
    expect(net.decide(net.self, { name: 'x', labels: {} }, 'content:fetch').allowed).toBe(true)
    expect(net.decide(net.self, { name: 'x', labels: {} }, 'api:admin').allowed).toBe(false)
    expect(net.rootKey).toBe('here')
    expect(files(directory)).toEqual([`${net.id}.root`])
    expect(statSync(join(directory, 'networks', `${net.id}.root`)).mode & 0o777).toBe(0o600)
    expect(statSync(join(directory, 'networks')).mode & 0o777).toBe(0o700)
  })

  it('is there after a restart, as it was', () => {
    const home = makeFounder()
    const again = home.restart().networks.find('lab')
    expect(again.id).toBe(home.net.id)
    expect(again.secret).toEqual(home.net.secret)
    expect(again.chain.bytes).toEqual(home.net.chain.bytes)
    expect(again.policy?.bytes).toEqual(home.net.policy?.bytes)
    expect(again.can('issue')).toBeDefined()
    expect(again.fault()).toBeUndefined()
  })

  it.each(['', 'Lab', 'a.b', '-lab', 'lab-', 'x'.repeat(64), 'open', 'a b', '*'])('cannot be called "%s"', (name) => {
    expect(() => makeHome().networks.create(name, { memberName: 'a' })).toThrow(
      expect.objectContaining({ code: 'usage' }),
    )
  })

  it('has a name of its own here, a member name made of any text, and labels that labels can be', () => {
    const { networks } = makeFounder()
    expect(() => networks.create('lab', { memberName: 'a' })).toThrow(expect.objectContaining({ code: 'taken' }))
    expect(networks.create('b', { memberName: 'Web_1.example.com' }).self.name).toBe('web-1')
    expect(networks.create('c', { memberName: '…' }).self.name).toBe('node')
    expect(() => networks.create('d', { memberName: 'a', labels: { 'A b': 'c' } })).toThrow(/cannot be a label/)
    expect(networks.list().map(({ name }) => name)).toEqual(['b', 'c', 'lab'])
  })

  it('is one of sixteen at most, since a hello speaks of no more', () => {
    const { networks, directory } = makeHome()
    for (let nth = 0; nth < 16; nth++) networks.create(`n${nth}`, { memberName: 'a' })
    expect(() => networks.create('more', { memberName: 'a' })).toThrow(expect.objectContaining({ code: 'limit' }))
    expect(files(directory)).toHaveLength(16)
  })
})

describe('finding a network', () => {
  it('goes by name, or by the beginning of the id, and says what there is', () => {
    const { net, networks } = makeFounder()
    expect(networks.find('lab')).toBe(net)
    expect(networks.find(net.id.slice(0, 6).toUpperCase())).toBe(net)
    expect(networks.get(net.id)).toBe(net)
    expect(() => networks.find(net.id.slice(0, 3))).toThrow(
      expect.objectContaining({ code: 'not-found', next: 'It is in: lab.' }),
    )
    expect(() => makeHome().networks.find('lab')).toThrow(/no closed network/)
  })
})

describe('what a crash leaves', () => {
  it('before the row is nothing: the key of a network that nobody was told of goes', () => {
    const { directory, db, restart } = makeHome()
    const other = makeFounder()
    const name = `${other.net.id}.root.unsettled`
    writeFileSync(
      join(directory, 'networks', name),
      readFileSync(join(other.directory, 'networks', `${other.net.id}.root`)),
    )
    writeFileSync(join(directory, 'networks', `${other.net.id}.root.unsettled.123.new`), 'half')
    expect(db.prepare('SELECT count(*) AS n FROM networks').get()).toEqual({ n: 0 })
    const again = restart()
    expect(files(directory)).toEqual([])
    expect(again.networks.orphans).toEqual([])
  })

  it('after the row is the network, whole', () => {
    const { directory, net, restart } = makeFounder()
    const path = join(directory, 'networks', `${net.id}.root`)
    renameSync(path, `${path}.unsettled`)
    expect(restart().networks.find('lab').can('issue')).toBeDefined()
    expect(files(directory)).toEqual([`${net.id}.root`])
  })

  it('of a lost database is the root key, which is kept and told of', () => {
    const { directory, net, db, restart } = makeFounder()
    db.exec('DELETE FROM networks')
    const again = restart()
    expect(again.networks.orphans).toEqual([net.id])
    expect(again.log.entries.map(({ event }) => event)).toContain('network.root-orphaned')
    expect(files(directory)).toEqual([`${net.id}.root`])
  })

  it('or of broken bytes is a line in the log, and the rest', () => {
    const { net, db, networks, issuer, directory, restart } = makeFounder()
    networks.create('other', { memberName: 'a' })
    issuer.revoke(net, { key: makeKey().publicKey, scope: 'member' })
    const bad = Buffer.from('no statement')
    for (const kind of ['revocation', 'policy', 'delegation'])
      db.prepare('INSERT INTO network_statements VALUES (?, ?, ?, ?)').run(net.id, kind, 'zz', bad)
    db.prepare("UPDATE networks SET chain = ? WHERE name = 'other'").run(bad)
    writeFileSync(join(directory, 'networks', `${net.id}.root`), 'no key')
    const again = restart()
    expect(again.networks.list().map(({ name }) => name)).toEqual(['lab'])
    const lab = again.networks.find('lab')
    expect(lab.revocations.list()).toHaveLength(1)
    expect(lab.policy?.statement.version).toBe(1)
    expect(lab.rootKey).toBe('absent')
    const events = again.log.entries.map(({ event }) => event)
    expect(events.filter((one) => one === 'statement.unreadable')).toHaveLength(3)
    expect(events).toEqual(expect.arrayContaining(['network.unreadable', 'network.root-unusable']))
    expect(db.isOpen).toBe(false)
    expect(again.db.prepare("SELECT count(*) AS n FROM network_statements WHERE key = 'zz'").get()).toEqual({ n: 3 })
    // Another node key is another node: its memberships are not shown as if they were good.
    expect(again.restart({ key: makeKey() }).networks.list()).toEqual([])
  })
})

describe('joining', () => {
  it('keeps what the token brought, under a free name, and is a member to the one who invited', async () => {
    const [founder, guest] = [makeFounder(), makeHome()]
    guest.networks.create('lab', { memberName: 'me' })
    const changes: NetworkChange[] = []
    guest.networks.onChange((change) => void changes.push(change))
    const { net, networks, invitations } = founder
    const { token } = invitations.create({ membership: net, addresses: [], expires: NOW + DAY })
    const parties = [guest.networks.party(() => false), networks.party(() => false)] as never as Parameters<
      typeof converse
    >
    const { dialler, listener } = await converse(parties[0], parties[1], { token, desk: invitations })
    if (dialler instanceof Error || dialler.joined === undefined) throw dialler
    const joined = guest.networks.join(dialler.joined)
    expect(joined.name).toBe('lab-2')
    expect(joined.id).toBe(net.id)
    expect(joined.can('issue')).toBeUndefined()
    expect(joined.rootKey).toBe('absent')
    expect(changes).toEqual([{ id: net.id, what: 'joined' }])
    expect(listener).toMatchObject({ members: [{ name: joined.self.name }] })
    const again = await converse(parties[0], parties[1])
    expect(again.dialler).toMatchObject({ open: false, members: [{ name: 'founder' }] })
    expect(guest.restart().networks.find('lab-2').secret).toEqual(net.secret)
  })

  it('again renews the certificate and nothing else', () => {
    const [founder, guest] = [makeFounder(), makeHome()]
    const first = letIn(founder, guest, { name: 'web' })
    founder.clock.at += DAY
    guest.clock.at = founder.clock.at
    const second = letIn(founder, guest, { name: 'web', labels: { zone: 'a' } })
    expect(second).toBe(first)
    expect(first.self).toMatchObject({ name: 'web', labels: { zone: 'a' }, issued: NOW + DAY })
    expect(guest.networks.list()).toHaveLength(1)
  })

  it('refuses what is not of the network, not of this node, or hides another secret', () => {
    const [founder, guest] = [makeFounder(), makeHome()]
    const { network, secret, chain } = letIn(founder, guest)
    const again = { network, name: 'lab', secret, chain }
    const foreign = new TestNetwork()
    const refused = expect.objectContaining({ code: 'not-allowed' })
    expect(() => guest.networks.join({ ...again, secret: foreign.secret })).toThrow(refused)
    expect(() => guest.networks.join({ ...again, chain: founder.net.chain })).toThrow(refused)
    expect(() => makeHome().networks.join(again)).toThrow(refused)
    expect(() => guest.networks.join({ ...again, network: foreign.id })).toThrow(refused)
    expect(guest.networks.list()).toHaveLength(1)
  })
})

describe('joining again', () => {
  it('mends a network whose row cannot be read, under its name', () => {
    const [founder, guest] = [makeFounder(), makeHome()]
    const { network, secret, chain } = letIn(founder, guest)
    guest.db.exec("UPDATE networks SET chain = x'00'")
    const again = guest.restart()
    expect(again.networks.list()).toEqual([])
    expect(again.networks.join({ network, name: 'lab', secret, chain }).name).toBe('lab')
    expect(again.restart().networks.find('lab').fault()).toBeUndefined()
  })
})

describe('leaving', () => {
  it('takes everything with it, and is refused while the only copy of the root key is here', () => {
    const { net, networks, issuer, invitations, directory, db } = makeFounder()
    invitations.create({ membership: net, addresses: [], expires: NOW + DAY })
    issuer.issue(net, { subject: makeKey().publicKey, name: 'a', labels: {} })
    expect(() => networks.leave('lab')).toThrow(expect.objectContaining({ code: 'usage' }))
    const changes: NetworkChange[] = []
    networks.onChange((change) => void changes.push(change))
    networks.leave('lab', { force: true })
    expect(changes).toEqual([{ id: net.id, what: 'left' }])
    expect(networks.list()).toEqual([])
    expect(files(directory)).toEqual([])
    for (const table of ['networks', 'network_statements', 'issued_certificates', 'invitations'])
      expect(db.prepare(`SELECT count(*) AS n FROM ${table}`).get()).toEqual({ n: 0 })
    expect(() => networks.leave('lab')).toThrow(expect.objectContaining({ code: 'not-found' }))
  })

  it('that was cut off in the middle is no leaving, or a whole one', () => {
    const { net, directory, networks, db } = makeFounder()
    db.exec('CREATE TRIGGER full BEFORE DELETE ON networks BEGIN SELECT RAISE (ABORT, "no room"); END')
    expect(() => networks.leave(net.id, { force: true })).toThrow(/no room/)
    expect(files(directory)).toEqual([`${net.id}.root`])
    expect(networks.list()).toHaveLength(1)
  })
})

describe('a party', () => {
  it('shows the networks in which this node is a member now', () => {
    const [founder, guest] = [makeFounder(), makeHome()]
    const membership = letIn(founder, guest)
    const party = guest.networks.party(() => true)
    expect(party.isOpen()).toBe(true)
    expect(party.networks()).toEqual([membership])
    founder.issuer.revoke(founder.net, { key: guest.key.publicKey, scope: 'member' })
    const [revocation] = founder.net.revocations.list()
    membership.takeRevocation(revocation?.bytes as Uint8Array)
    expect(membership.fault()).toMatchObject({ fault: 'revoked' })
    expect(party.networks()).toEqual([])
    expect(party.revocations(membership.network)).toBe(membership.revocations)
    expect(party.revocations(OPEN_NETWORK).isRevoked(guest.key.publicKey)).toBe(false)
    const other = makeFounder()
    other.clock.at += 91 * DAY
    expect(other.net.fault()).toMatchObject({ fault: 'expired' })
    expect(other.networks.party(() => true).networks()).toEqual([])
  })
})

describe('what nobody should see', () => {
  it('is in no log, no JSON and no dump of a membership or of all', async () => {
    const { net, networks, issuer, invitations, log, directory } = makeFounder()
    const pem = readFileSync(join(directory, 'networks', `${net.id}.root`), 'utf8')
    const seed = Buffer.from(pem.split('\n')[1] ?? '', 'base64').subarray(-32)
    const { token } = invitations.create({ membership: net, addresses: [], expires: NOW + DAY })
    const options = { depth: 12, showHidden: true, getters: true }
    const party = networks.party(() => true)
    const shown = [net, networks, issuer, invitations, net.can('issue'), { deep: [net] }, party.key].flatMap((one) => [
      inspect(one, options),
      String(JSON.stringify(one)),
      inspect(Object.assign({}, one), options),
    ])
    shown.push(JSON.stringify(log.entries), JSON.stringify(invitations.list()), JSON.stringify(networks.list()))
    shown.push(JSON.stringify(party.networks()))
    for (const secret of [net.secret, seed, token.secret]) {
      expect(secret.byteLength).toBeGreaterThanOrEqual(16)
      for (const text of shown.map((one) => one.replaceAll(/\s/g, '').toLowerCase())) {
        for (const form of formsOf(secret)) expect(text).not.toContain(form)
      }
    }
  })
})

/** How bytes are printed, as far as one begins to look for them. */
function formsOf(secret: Uint8Array): string[] {
  const first = [...secret.subarray(0, 12)]
  return [
    Buffer.from(secret).toString('hex'),
    Buffer.from(secret).toString('base64').slice(0, 15).toLowerCase(),
    first.join(','),
    first.map((one) => one.toString(16).padStart(2, '0')).join(''),
    first.map((byte, nth) => `"${nth}":${byte}`).join(','),
  ]
}

describe('bytes from peers', () => {
  it('that are no statement are refused as such, and nothing is stored', () => {
    const { net, db } = makeFounder()
    const before = db.prepare('SELECT count(*) AS n FROM network_statements').get()
    const good = net.policy?.bytes as Uint8Array
    const bytes = fc.oneof(
      fc.uint8Array({ maxLength: 2_000 }),
      fc.tuple(fc.nat(good.byteLength - 1), fc.integer({ min: 1, max: 255 })).map(([at, change]) => {
        const changed = Uint8Array.from(good)
        changed[at] = (changed[at] ?? 0) ^ change
        return changed
      }),
    )
    fc.assert(
      fc.property(bytes, (input) => {
        for (const take of ['takeRevocation', 'takePolicy', 'takeDelegation'] as const)
          expect(() => net[take](input)).toThrow(WireError)
      }),
      { numRuns: 300 },
    )
    expect(db.prepare('SELECT count(*) AS n FROM network_statements').get()).toEqual(before)
  })
})
