/**
 * Certificates as time passes, and labels as they change: a member's is renewed by itself, also when the issuer was away for a while; one
 * that has ended says so and comes back by a new token; labels reach who was away; a policy by labels is what happens, within seconds.
 *
 * Time passes by starting agents again with a clock that is ahead.
 */
import { isDeepStrictEqual } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Explanation, MemberView, NetworkDetail } from '../../agent/api/membership-contract.ts'
import { type RealAgent, until } from '../agents.ts'
import {
  allSee,
  findsNamed,
  invite,
  joinWith,
  Lab,
  membersOf,
  publish,
  refuses,
  SOON_MS_MAX,
  says,
  tryToken,
} from './members.ts'

const DAY_MS = 24 * 3_600_000
/** Of a certificate, which is renewed soon after the half of it. */
const LIFETIME_DAYS = 90
/** From the moment that a policy or labels are set until they are everywhere: a second, on a machine that one has for oneself. */
const IN_FORCE_MS_MAX = 30_000

describe('certificates', () => {
  let lab: Lab
  let founder: RealAgent
  let web: RealAgent
  beforeAll(async () => {
    lab = await Lab.open()
    ;[founder, web] = await Promise.all([
      lab.start({ name: 'founder', flags: ['--no-open'] }),
      lab.start({ name: 'web', flags: ['--no-open'] }),
    ])
    await says(founder, 'network', 'create', 'home')
    await joinWith(web, await invite(founder, '--label', 'zone=a'))
    await allSee([founder, web], ['founder', 'web'])
  })
  afterAll(() => lab?.[Symbol.asyncDispose]())

  const ownOf = async (agent: RealAgent) => (await agent.client.get<NetworkDetail>('networks/home')).member
  const daysLeft = async (agent: RealAgent, aheadMs: number) =>
    Math.round((Date.parse((await ownOf(agent)).expires) - Date.now() - aheadMs) / DAY_MS)

  test('are renewed by themselves at half of their time, when the issuer is back', async () => {
    expect(await daysLeft(web, 0)).toBe(LIFETIME_DAYS)
    const aheadMs = 0.6 * LIFETIME_DAYS * DAY_MS
    await Promise.all([lab.end(founder), lab.end(web)])
    // The issuer is away.
    web = await lab.restart(web, { aheadMs })
    await until(() => web.logged('certificate.unrenewed').length > 0, { what: 'it tries', ms: SOON_MS_MAX })
    expect(await daysLeft(web, aheadMs)).toBe(LIFETIME_DAYS - 54)
    expect((await web.status()).warnings.map(({ code }) => code)).not.toContain('membership.ended')

    founder = await lab.restart(founder, { aheadMs })
    await until(async () => (await daysLeft(web, aheadMs)) === LIFETIME_DAYS, {
      what: () => `web has another certificate:\n${web.log.slice(-20).join('\n')}`,
      ms: SOON_MS_MAX,
    })
    expect(await ownOf(web)).toMatchObject({ name: 'web', labels: { zone: 'a' }, state: 'member' })
    // Its own, and it is told to the others.
    expect(await daysLeft(founder, aheadMs)).toBe(LIFETIME_DAYS)
    const known = async () => (await membersOf(founder)).find(({ name }) => name === 'web')?.expires
    await until(async () => (await known()) === (await ownOf(web)).expires, {
      what: 'the founder knows the new certificate',
      ms: SOON_MS_MAX,
    })
  })

  test('that are about to end, and cannot be renewed, are warned of; one that has ended says what to do', async () => {
    await Promise.all([lab.end(founder), lab.end(web)])
    // Renewed at 54 days, so they end at 144.
    web = await lab.restart(web, { aheadMs: 135 * DAY_MS })
    const warning = (code: string) => async () => (await web.status()).warnings.find((one) => one.code === code)
    expect(await until(warning('membership.ending'), { what: 'a warning', ms: SOON_MS_MAX })).toMatchObject({
      message: 'the certificate of this node in "home" ends in 9 days and could not be renewed',
    })
    const aheadMs = 145 * DAY_MS
    web = await lab.restart(web, { aheadMs })
    expect(await until(warning('membership.ended'), { what: 'a warning', ms: SOON_MS_MAX })).toMatchObject({
      message: expect.stringContaining('this node is not in "home" any more'),
    })
    const { stdout } = await lab.run(web, 'status')
    expect(stdout).toMatch(/home: this node is web, but certificate ended/)
    expect(stdout).toContain('`agent invite`')
    expect(stdout).toContain('`agent join`')

    // The issuer is back, too late for a renewal, and renews its own.
    founder = await lab.restart(founder, { aheadMs })
    expect(await ownOf(founder)).toMatchObject({ state: 'member' })
    expect(await ownOf(web)).toMatchObject({ state: 'expired' })
    const said = await refuses(web, 'publish', lab.file('notes', 'notes'), '--network', 'home')
    expect(said).toContain('nobody in "home" would see it: the certificate')
    expect(said).toContain('`agent status`')
  })

  test('come back by a new token, and the member is what it was', async () => {
    const aheadMs = 145 * DAY_MS
    const token = await invite(founder, '--expires', '1h')
    const { code, stderr } = await tryToken(web, token)
    expect(code, stderr).toBe(0)
    expect(await ownOf(web)).toMatchObject({ name: 'web', state: 'member' })
    expect(await daysLeft(web, aheadMs)).toBe(LIFETIME_DAYS)
    expect((await web.status()).warnings.map(({ code }) => code)).not.toContain('membership.ended')
    await allSee([founder, web], ['founder', 'web'])
    await publish(lab, web, 'back', 'here again', '--network', 'home')
    await findsNamed(founder, 'back')
  })
})

test('certificates of a delegate end with its delegation at the latest, and are renewed by whoever may for longer', async () => {
  await using lab = await Lab.open()
  const start = (name: string) => lab.start({ name, flags: ['--no-open'] })
  let [founder, gate, web] = await Promise.all([start('founder'), start('gate'), start('web')])
  await says(founder, 'network', 'create', 'home')
  await joinWith(gate, await invite(founder))
  await says(founder, 'network', 'delegate', 'home', 'gate', '--days', '1')
  await until(async () => (await gate.client.get<NetworkDetail>('networks/home')).issues, {
    what: 'gate may issue',
    ms: SOON_MS_MAX,
  })
  const { member } = await joinWith(web, await invite(gate))
  expect(Date.parse(member.expires) - Date.now()).toBeLessThanOrEqual(DAY_MS)
  await allSee([founder, gate, web], ['founder', 'gate', 'web'])

  const aheadMs = 0.9 * DAY_MS
  await Promise.all([founder, gate, web].map((agent) => lab.end(agent)))
  ;[gate, web] = await Promise.all([lab.restart(gate, { aheadMs }), lab.restart(web, { aheadMs })])
  // The delegate has nothing longer to give.
  await until(async () => (await web.status()).warnings.some(({ message }) => message.includes('ends in 2 hours')), {
    what: 'a warning',
    ms: SOON_MS_MAX,
  })
  founder = await lab.restart(founder, { aheadMs })
  const days = async () =>
    (Date.parse((await web.client.get<NetworkDetail>('networks/home')).member.expires) - Date.now() - aheadMs) / DAY_MS
  await until(async () => (await days()) > 80, {
    what: () => `web is renewed by the founder:\n${web.log.slice(-20).join('\n')}`,
    ms: SOON_MS_MAX,
  })
  expect((await web.status()).warnings.map(({ code }) => code)).not.toContain('membership.ending')

  gate = await lab.restart(gate, { aheadMs: 2 * DAY_MS })
  expect(await refuses(gate, 'invite')).toContain('this node may not let others in in "home"')
})

describe('labels', () => {
  let lab: Lab
  let founder: RealAgent
  let web: RealAgent
  let db: RealAgent
  beforeAll(async () => {
    lab = await Lab.open()
    const flags = ['--no-open']
    ;[founder, web, db] = await Promise.all([
      lab.start({ name: 'founder', flags }),
      lab.start({ name: 'web', flags }),
      lab.start({ name: 'db', flags }),
    ])
    await says(founder, 'network', 'create', 'home')
    await joinWith(web, await invite(founder, '--label', 'role=web', '--label', 'zone=a'))
    await joinWith(db, await invite(founder))
    await allSee([founder, web, db], ['founder', 'web', 'db'])
  })
  afterAll(() => lab?.[Symbol.asyncDispose]())

  const labelsAt = async (agent: RealAgent, name: string) =>
    (await membersOf(agent)).find((member) => member.name === name)?.labels
  const known = (agents: RealAgent[], name: string, labels: Record<string, string>, ms = SOON_MS_MAX) =>
    until(
      async () => {
        const views = await Promise.all(agents.map((agent) => labelsAt(agent, name)))
        return views.every((view) => isDeepStrictEqual(view, labels))
      },
      { what: `all know that ${name} has ${JSON.stringify(labels)}`, ms },
    )

  test('come with the invitation, change at once for who is here, and are delivered to who was away', async () => {
    await known([founder, web, db], 'web', { role: 'web', zone: 'a' })
    expect(await says(founder, 'member', 'label', 'web', 'zone=b')).toBe('web has now role=web, zone=b.')
    await known([founder, web, db], 'web', { role: 'web', zone: 'b' }, IN_FORCE_MS_MAX)

    await lab.end(web)
    await until(async () => (await stateOf(founder, 'web')) !== 'here' || !(await isConnected(founder, 'web')), {
      what: 'web is away',
      ms: SOON_MS_MAX,
    })
    const said = await says(founder, 'member', 'label', 'web', 'tier=gold', '--remove', 'zone')
    expect(said).toContain('web has now role=web, tier=gold.')
    expect(said).toContain('It is away: it gets its new certificate when it comes back.')
    web = await lab.restart(web)
    await known([founder, web, db], 'web', { role: 'web', tier: 'gold' })
    const { member } = await web.client.get<NetworkDetail>('networks/home')
    expect(member.labels).toEqual({ role: 'web', tier: 'gold' })
  })

  test('decide by the policy what happens, as soon as it is set, and explain says the same', async () => {
    const cid = await publish(lab, db, 'table', 'rows', '--network', 'home')
    await findsNamed(web, 'table')
    const policy = lab.file(
      'policy.toml',
      `[[grants]]
from = "*"
to = "*"
allow = ["content:publish"]

[[grants]]
from = "label:role=web"
to = "name:db"
allow = ["content:fetch"]
`,
    )
    await says(founder, 'policy', 'set', policy, '--yes')
    await until(async () => (await versionAt(web)) === 2 && (await versionAt(db)) === 2, {
      what: 'the policy is everywhere',
      ms: IN_FORCE_MS_MAX,
    })
    await expectFetch(web, cid, 'web', true)
    await expectFetch(founder, cid, 'founder', false)

    await says(founder, 'member', 'label', 'web', 'role=none')
    await known([db], 'web', { role: 'none', tier: 'gold' }, IN_FORCE_MS_MAX)
    const other = await publish(lab, db, 'other', 'other rows', '--network', 'home')
    await findsNamed(web, 'other')
    await expectFetch(web, other, 'web', false)
    await says(founder, 'member', 'label', 'founder', 'role=web')
    await known([db], 'founder', { role: 'web' }, IN_FORCE_MS_MAX)
    await expectFetch(founder, other, 'founder', true)
  })

  const versionAt = async (agent: RealAgent) => (await agent.client.get<NetworkDetail>('networks/home')).policyVersion
  const memberAt = async (agent: RealAgent, name: string): Promise<MemberView | undefined> =>
    (await membersOf(agent)).find((member) => member.name === name)
  const stateOf = async (agent: RealAgent, name: string) => (await memberAt(agent, name))?.state
  const isConnected = async (agent: RealAgent, name: string) => (await memberAt(agent, name))?.connected ?? false

  /** Whether it gets the content of db, and whether all three say so beforehand. */
  async function expectFetch(agent: RealAgent, cid: string, name: string, allowed: boolean): Promise<void> {
    for (const asked of [founder, web, db]) {
      const { code, stdout } = await asked.run('policy', 'explain', name, 'db', 'content:fetch', '--json')
      const said = JSON.parse(stdout) as Explanation
      expect(said.allowed, `${asked.name} on ${name}: ${stdout}`).toBe(allowed)
      expect(code).toBe(allowed ? 0 : 4)
      if (allowed) expect(said.rule).toMatchObject({ index: 1 })
      else expect(said.missing).toContain('content:fetch')
    }
    const { code, stderr } = await agent.run('get', cid, '--to', lab.path(`${name}-${cid}`))
    expect(code === 0, `${name} gets it: ${stderr}`).toBe(allowed)
    if (allowed) return
    const audited = await says(db, 'audit', '--json')
    expect(audited).toContain('access.refused')
  }
})
