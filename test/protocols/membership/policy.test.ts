/** Who may do what: decisions with their reason, and policies as people write them. */
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { WireError } from '../../../protocols/error.ts'
import {
  comparePolicies,
  DEFAULT_GRANTS,
  decide,
  decodePolicy,
  type Grant,
  issuePolicy,
  selectorFault,
  verbFault,
} from '../../../protocols/membership/policy.ts'
import { formatPolicy, parsePolicy } from '../../../protocols/membership/policy-text.ts'
import { Revocations } from '../../../protocols/membership/revocation.ts'
import { makeKey, NOW, TestNetwork } from './people.ts'

const vectors = JSON.parse(readFileSync('protocols/membership/vectors.json', 'utf8')) as {
  verbs: { grant: string; verb: string; allowed: boolean }[]
}
const web = { name: 'web1', labels: { zone: 'a' } }
const db = { name: 'db1', labels: { zone: 'b', role: 'db' } }
const grants: Grant[] = [
  { from: 'label:zone=a', to: 'name:db*', allow: ['service:connect pg', 'service:connect redis'] },
  { from: 'name:web1', to: '*', allow: ['service:connect *'] },
  { from: '*', to: '*', allow: ['content:fetch'] },
  { from: 'key:of-a-later-version', to: '*', allow: ['volume:mount x'] },
]

describe('decisions', () => {
  it.each([
    ['service:connect pg', web, db, 0],
    ['service:connect http', web, db, 1],
    ['content:fetch', db, web, 2],
    ['service:connect pg', db, web, undefined],
    ['content:publish', web, db, undefined],
    ['content:sign', web, db, undefined],
    ['service:offer pg', web, db, undefined],
    ['volume:mount x', web, db, undefined],
    ['service:connect *', web, db, undefined],
    ['service:connect', web, db, undefined],
    ['', web, db, undefined],
  ])('%s', (verb, from, to, index) => {
    const decision = decide({ grants }, from, to, verb)
    expect(decision.allowed ? decision.rule.index : undefined).toBe(index)
  })

  it('name the rule as people write it', () => {
    const decision = decide({ grants }, web, db, 'service:connect pg')
    const text = 'label:zone=a -> name:db*: service:connect pg, service:connect redis'
    expect(decision).toEqual({ allowed: true, rule: { index: 0, text } })
  })

  it('say what is missing, and the nearest grant', () => {
    const missing = (verb: string, from = db, to = web) => {
      const decision = decide({ grants }, from, to, verb)
      return decision.allowed ? '' : decision.missing
    }
    expect(missing('service:connect pg')).toBe(
      'no grant gives service:connect pg from db1 (zone=b, role=db) to web1 (zone=a); the nearest, ' +
        '"label:zone=a -> name:db*: service:connect pg, service:connect redis", is from label:zone=a',
    )
    expect(missing('api:admin')).toContain('"* -> *: content:fetch" does not name it')
    expect(missing('fly')).toContain('"fly" is no verb; there are content:fetch')
    expect(decide(undefined, web, db, 'content:fetch')).toMatchObject({
      missing: expect.stringContaining('not received'),
    })
    expect(decide({ grants: [] }, web, db, 'content:fetch')).toMatchObject({ allowed: false })
  })

  it('of a new network give content to members, and nothing else', () => {
    const allowed = [
      'content:fetch',
      'content:publish',
      'api:read',
      'api:admin',
      'service:connect x',
      'service:offer x',
      'image:pull team/app',
      'image:push app',
      'image:private docker.io/library/app',
    ].filter((verb) => decide({ grants: [...DEFAULT_GRANTS] }, web, db, verb).allowed)
    expect(allowed).toEqual(['content:fetch', 'content:publish', 'image:pull team/app', 'image:push app'])
  })

  it.each([
    ['image:push team/*', 'image:push team/app', true],
    ['image:push team/*', 'image:push team/app/deep', true],
    ['image:push team/*', 'image:push team', false],
    ['image:push team/*', 'image:push teams/app', false],
    ['image:push team/*', 'image:pull team/app', false],
    ['image:push team/app', 'image:push team/app', true],
    ['image:push team/app', 'image:push team/app2', false],
    ['image:push *', 'image:push docker.io/library/app', true],
    ['image:push *', 'image:push team/*', false],
    ['image:push *', 'image:push Team/app', false],
    ['image:push *', `image:push ${'a/'.repeat(119)}a`, true],
    ['image:push *', `image:push ${'a/'.repeat(120)}a`, false],
    ['service:connect web*', 'service:connect web1', false],
  ])('by %s: %s is %s', (granted, asked, isAllowed) => {
    const all = [{ from: '*', to: '*', allow: [granted] }]
    expect(decide({ grants: all }, web, db, asked).allowed).toBe(isAllowed)
  })

  it.each(vectors.verbs)('vector: $grant and $verb', ({ grant, verb, allowed }) => {
    expect(decide({ grants: [{ from: '*', to: '*', allow: [grant] }] }, web, db, verb).allowed).toBe(allowed)
  })

  it('do not take inherited fields for labels', () => {
    const all = [{ from: 'label:constructor=x', to: '*', allow: ['api:admin'] }]
    expect(decide({ grants: all }, web, db, 'api:admin').allowed).toBe(false)
  })

  it('only widen when a grant is added, wherever', () => {
    const selector = fc.constantFrom('*', 'name:web1', 'name:db*', 'label:zone=a', 'label:role=db', 'x:y')
    const verbs = ['content:fetch', 'api:read', 'service:connect pg', 'service:connect *'] as const
    const grant = fc.record({ from: selector, to: selector, allow: fc.subarray([...verbs], { minLength: 1 }) })
    fc.assert(
      fc.property(
        fc.array(grant, { maxLength: 5 }),
        grant,
        fc.nat(5),
        fc.constantFrom(...verbs),
        (some, added, at, verb) => {
          const before = decide({ grants: some }, web, db, verb).allowed
          expect(decide({ grants: some.toSpliced(at, 0, added) }, web, db, verb).allowed || !before).toBe(true)
        },
      ),
    )
  })
})

describe('policies', () => {
  const network = new TestNetwork()
  const revocations = network.revocations
  const policy = (version: number, by = network.root, delegation?: ReturnType<TestNetwork['delegate']>) =>
    issuePolicy({ network: network.id, version, grants, issued: NOW }, by, delegation)

  it('are replaced by the higher version, and never by one of another network or by altered bytes', () => {
    const [old, next] = [policy(1), policy(2)]
    expect(comparePolicies(next, old)).toBeGreaterThan(0)
    expect(comparePolicies(old, decodePolicy(old.bytes, network.id, revocations))).toBe(0)
    expect(() => decodePolicy(old.bytes, new TestNetwork().id, revocations)).toThrow(WireError)
    fc.assert(
      fc.property(fc.nat(old.bytes.byteLength * 8 - 1), (bit) => {
        const altered = Uint8Array.from(old.bytes)
        altered[bit >> 3] = (altered[bit >> 3] ?? 0) ^ (1 << (bit & 7))
        expect(() => decodePolicy(altered, network.id, revocations)).toThrow(WireError)
      }),
      { numRuns: 200 },
    )
  })

  it('of a delegate need the right, and fall with their issuer', () => {
    const admin = makeKey()
    const signed = policy(3, admin, network.delegate(admin.publicKey, { may: ['policy'] }))
    expect(decodePolicy(signed.bytes, network.id, revocations).statement.version).toBe(3)
    const unentitled = policy(3, admin, network.delegate(admin.publicKey, { may: ['issue'] }))
    expect(() => decodePolicy(unentitled.bytes, network.id, revocations)).toThrow('no right to policy')
    const own = new TestNetwork()
    own.revoke(admin.publicKey, { scope: 'issuer' })
    const theirs = issuePolicy(
      { network: own.id, version: 1, grants, issued: NOW },
      admin,
      own.delegate(admin.publicKey, { may: ['policy'] }),
    )
    expect(() => decodePolicy(theirs.bytes, own.id, own.revocations)).toThrow('its issuer was revoked')
    expect(decodePolicy(theirs.bytes, own.id, new Revocations(own.id)).statement.version).toBe(1)
  })
})

describe('policies as people write them', () => {
  it('are read as TOML and as JSON, and written so that they can be read', () => {
    const toml = '# mine\n[[grants]]\nfrom = "*"\nto = "name:web1"\nallow = ["service:connect web", "content:fetch"]\n'
    const expected = [{ from: '*', to: 'name:web1', allow: ['service:connect web', 'content:fetch'] }]
    expect(parsePolicy(toml)).toEqual(expected)
    expect(parsePolicy(JSON.stringify({ grants: expected }))).toEqual(expected)
    expect(parsePolicy(formatPolicy(expected))).toEqual(expected)
    expect(parsePolicy('')).toEqual([])
  })

  it.each([
    ['[[grants]]\nfrom = "*"\nto = "*"\nallow = ["fly"]', 'line 1: grants[0].allow[0]: "fly" is no verb'],
    ['\n\n[[grants]]\nfrom = "web"\nto = "*"\nallow = ["api:read"]', 'line 3: grants[0].from: "web" is no selector'],
    ['[[grants]]\nto = "*"\nallow = ["api:read"]', 'grants[0].from: is missing'],
    [
      '[[grants]]\nfrom = "*"\nto = 1\nallow = "api:read"',
      'grants[0].to: must be a text\nline 1: grants[0].allow: must be a list',
    ],
    ['[[grants]]\nfrom = "*"\nto = "*"\nallow = ["service:connect"]', 'takes the name of one service'],
    [`[[grants]]\nfrom = "*"\nto = "*"\nallow = ["image:push ${'a'.repeat(65)}"]`, 'names more than 64 characters'],
    [
      '[[grants]]\nfrom = "*"\nto = "*"\ndeny = []\nallow = ["api:read"]',
      'grants[0].deny: is nothing that a grant has',
    ],
    ['[[grant]]\nfrom = "*"', '"grant" is nothing that a policy has'],
    ['grants = 1', 'grants: must be a list'],
    ['[[grants]\n', 'line 1, column'],
    ['{"grants": [{', 'not JSON'],
    ['{"grants": ["x"]}', 'grants[0]: must be a table'],
  ])('say where they are wrong: %j', (text, message) => {
    expect(() => parsePolicy(text)).toThrow(message)
  })

  it('are refused as any other text with a WireError, and what is taken is what was written', () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 200 }), (text) => {
        try {
          const read = parsePolicy(text)
          expect(parsePolicy(formatPolicy(read))).toEqual(read)
        } catch (error) {
          expect(error).toBeInstanceOf(WireError)
        }
      }),
      { numRuns: 500 },
    )
  })

  it.each(['*', 'name:web1', 'name:web-*', 'label:zone=a', 'label:a.b=C_1'])('know the selector %s', (selector) => {
    expect(selectorFault(selector)).toBeUndefined()
  })

  it.each(['', 'web', 'name:', 'name:A', 'name:a*b*', 'label:zone', 'label:=a', 'label:zone=', 'label:zone=*', ' *'])(
    'do not know the selector %j',
    (selector) => {
      expect(selectorFault(selector)).toBeDefined()
    },
  )

  it.each([
    'content:fetch',
    'api:admin',
    'service:connect web',
    'service:offer *',
    'image:pull *',
    'image:push a/b_c/*',
  ])('know the verb %s', (verb) => {
    expect(verbFault(verb)).toBeUndefined()
  })

  it.each([
    '',
    'content',
    'content:fetch x',
    'service:connect',
    'service:connect A',
    'service:connect a b',
    'api:*',
    'image:push',
    'image:push A',
    'image:pull a*',
    'image:pull a/**',
  ])('do not know the verb %j', (verb) => {
    expect(verbFault(verb)).toBeDefined()
  })
})
