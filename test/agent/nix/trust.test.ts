/** Which keys are believed, and what they make of a path. */
import { describe, expect, it } from 'vitest'
import { contentAddressFits } from '../../../agent/nix/content-address.ts'
import { CacheKey } from '../../../agent/nix/signing.ts'
import { TrustedKeys } from '../../../agent/nix/trust.ts'
import { openDatabase } from '../../../agent/state/database.ts'

const own = CacheKey.ephemeral('own')
const configured = CacheKey.ephemeral('configured')
const other = CacheKey.ephemeral('other')
const facts = {
  path: `/nix/store/${'a'.repeat(32)}-x`,
  narHash: 'ea5ae6fe88ada6676107527b2680dc20437ee0ff5a7c276db270c7e465153b50',
  narSize: 120,
  references: [],
}

const make = (db = openDatabase(':memory:')) => new TrustedKeys(db, own.publicKey, [configured.publicKey.text])

describe('the list', () => {
  it('holds the own key, those of the configuration, and those added, which survive a restart', () => {
    const db = openDatabase(':memory:')
    const keys = make(db)
    expect(keys.add(other.publicKey.text)).toMatchObject({ name: other.publicKey.name, origin: 'added' })
    expect(keys.add(other.publicKey.text).origin).toBe('added')
    expect(keys.add(configured.publicKey.text).origin).toBe('config')
    expect(
      make(db)
        .list()
        .map(({ origin }) => origin),
    ).toEqual(['own', 'config', 'added'])
    expect(keys.has(other.publicKey.text)).toBe(true)
  })

  it('loses a key by its name or in full, but only one that was added', () => {
    const db = openDatabase(':memory:')
    const keys = make(db)
    keys.add(other.publicKey.text)
    expect(keys.remove(other.publicKey.name)).toMatchObject({ key: other.publicKey.text })
    expect(make(db).list()).toHaveLength(2)
    expect(() => keys.remove(other.publicKey.name)).toThrow(/is not a trusted key/)
    expect(() => keys.remove(own.publicKey.text)).toThrow(/own key/)
    expect(() => keys.remove(configured.publicKey.name)).toThrow(/configuration/)
  })

  it('asks which, when two have one name', () => {
    const keys = make()
    const twin = `${other.publicKey.name}:${configured.publicKey.text.split(':')[1]}`
    keys.add(other.publicKey.text)
    keys.add(twin)
    expect(() => keys.remove(other.publicKey.name)).toThrow(/2 trusted keys are named/)
    keys.remove(twin)
    expect(keys.has(other.publicKey.text)).toBe(true)
  })

  it('takes a configuration that was read again, or leaves everything as it was', () => {
    const keys = make()
    expect(() => keys.configure(['nonsense'])).toThrow(/is not a public key/)
    expect(keys.has(configured.publicKey.text)).toBe(true)
    keys.configure([])
    expect(keys.has(configured.publicKey.text)).toBe(false)
  })
})

describe('a path', () => {
  it('is believed by one signature of a trusted key among others', () => {
    const verdict = make().judge(facts, ['garbage', other.sign(facts), configured.sign(facts)])
    expect(verdict).toEqual({ ok: true, by: 'signature', keyName: configured.publicKey.name, ca: undefined })
    expect(make().judge(facts, [own.sign(facts)]).ok).toBe(true)
  })

  it('is refused when its signers are not trusted, naming them', () => {
    const keys = make()
    const refused = keys.judge(facts, [other.sign(facts)])
    expect(refused).toMatchObject({ ok: false, fault: 'untrusted' })
    expect(refused).toHaveProperty('reason', expect.stringContaining(other.publicKey.name))
    expect(keys.judge(facts, [])).toMatchObject({
      fault: 'untrusted',
      reason: `it is not signed; it needs a signature that this agent trusts: ${configured.publicKey.name}`,
    })
    keys.add(other.publicKey.text)
    expect(keys.judge(facts, [other.sign(facts)]).ok).toBe(true)
  })

  it('needs as many different keys as are required, and says which signed, which count, and how many', () => {
    const keys = new TrustedKeys(openDatabase(':memory:'), own.publicKey, [configured.publicKey.text], 2)
    const twice = [configured.sign(facts), configured.sign(facts), other.sign(facts)]
    const refused = keys.judge(facts, twice)
    expect(refused).toMatchObject({ ok: false, fault: 'untrusted' })
    const { name } = configured.publicKey
    expect(refused).toHaveProperty(
      'reason',
      `it is signed by ${name}, which this agent trusts and signed by ${other.publicKey.name}, which this agent does not trust; ` +
        `it needs signatures of 2 different keys that this agent trusts: ${name}`,
    )
    keys.add(other.publicKey.text)
    expect(keys.judge(facts, twice)).toMatchObject({ ok: true, by: 'signature' })
    // What this agent signed itself, it has built, or believed before.
    expect(keys.judge(facts, [own.sign(facts)]).ok).toBe(true)
    keys.configure([], 1)
    expect(keys.judge(facts, [other.sign(facts)]).ok).toBe(true)
  })

  it('is believed by the key of a member that may sign, which counts as any other', () => {
    const keys = new TrustedKeys(openDatabase(':memory:'), own.publicKey, [configured.publicKey.text], 2)
    const signatures = [configured.sign(facts), other.sign(facts)]
    expect(keys.judge(facts, signatures).ok).toBe(false)
    expect(keys.judge(facts, signatures, [other.publicKey]).ok).toBe(true)
    // The same key in two lists is one.
    expect(keys.judge(facts, [configured.sign(facts)], [configured.publicKey]).ok).toBe(false)
  })

  it('is refused as forged when a trusted key signed something else', () => {
    const signature = configured.sign({ ...facts, narSize: 121 })
    expect(make().judge(facts, [signature])).toMatchObject({ ok: false, fault: 'forged' })
  })

  it('is believed without a signature when its name follows from its contents', () => {
    const addressed = { ...facts, path: '/nix/store/rfn4vzwhmb8r4k8gp16g27dqwjji5s37-fx' }
    const ca = 'fixed:sha256:1b8m03r63zqhnjf7l5wnldhh7c134ap5vpj0850ymkq1iyzicy5s'
    expect(make().judge({ ...addressed, ca }, [])).toEqual({ ok: true, by: 'content', ca })
    expect(make().judge({ ...facts, ca }, [])).toMatchObject({ ok: false, fault: 'forged' })
    const signed = make().judge({ ...facts, ca: `${ca}\nNarSize: 1` }, [configured.sign(facts)])
    expect(signed).toMatchObject({ ok: true, by: 'signature', ca: undefined })
  })
})

describe('a content address', () => {
  const cases = [
    ['/nix/store/hhg0b58yyhdqidhyf2440nxh0fffmkdv-fx', 'fixed:sha1:kpcd173cq987hw957sx6m0868wv3x6d9'],
    [
      '/nix/store/hd0nblk39zcqcb7xrb3341zfmzcpf368-fx',
      'fixed:sha512:2gs8k559z4rlahfx0y688s49m2vvszylcikrfinm30ly9rak69236nkam5ydvly1ai7xac99vxfc4ii84hawjbk876blyk1jfhkbbyx',
    ],
    [
      '/nix/store/s0cjcgnhn0fpdxh9l63cih64565d6v2q-undernet-test-0.drv',
      'text:sha256:0wwfqd038flzmcrhr0jaip6naydg5ldyyjc5r7xa07pn3jwj6ijl',
    ],
  ] as const

  it.each(cases)('makes the path %s', (path, ca) => {
    const entry = { path, narHash: facts.narHash, references: [] }
    expect(contentAddressFits(entry, ca)).toBe(true)
    expect(contentAddressFits({ ...entry, path: path.replace('-', '-x') }, ca)).toBe(false)
    expect(contentAddressFits({ ...entry, references: [facts.path] }, ca)).toBe(false)
  })

  it('of a tree is the hash of its NAR', () => {
    const path = '/nix/store/j29sv41s3j8ms38v30ypffmkdwvzl1sq-undernet-test-tools'
    const ca = 'fixed:r:sha256:08f8d8hryay76i5ifs5ssn91cxyaffm7c4lkghd6z0rywb3xn8zl'
    const narHash = 'f423dbc7e23e836f1a7c931276aa73ca771692d5ba68174b34c72b9f216ac821'
    expect(contentAddressFits({ path, narHash, references: [] }, ca)).toBe(true)
    expect(contentAddressFits({ path, narHash: facts.narHash, references: [] }, ca)).toBe(false)
  })

  it.each(['', 'text', 'fixed:r:sha256:', 'fixed:md6:0000', 'text:sha1:kpcd173cq987hw957sx6m0868wv3x6d9', 'x:y:z'])(
    'is refused when it is %j',
    (ca) => {
      expect(contentAddressFits(facts, ca)).toBe(false)
    },
  )
})
