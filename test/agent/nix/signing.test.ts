/** Signatures of store paths: made, checked, and kept to the key's own file. */
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { CacheKey, fingerprint, isSignedBy, parsePublicKey, signerOf } from '../../../agent/nix/signing.ts'

const directory = mkdtempSync(join(tmpdir(), 'signing-'))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const facts = {
  path: '/nix/store/3cin6kr0r1zxqbjm2wgzrgv8anb4bm24-undernet-test-0',
  narHash: 'ea5ae6fe88ada6676107527b2680dc20437ee0ff5a7c276db270c7e465153b50',
  narSize: 120,
  references: [
    '/nix/store/3cin6kr0r1zxqbjm2wgzrgv8anb4bm24-undernet-test-0',
    '/nix/store/j29sv41s3j8ms38v30ypffmkdwvzl1sq-b',
  ],
}

describe('a signature', () => {
  it('is over the fingerprint that Nix signs', () => {
    expect(fingerprint(facts)).toBe(
      `1;${facts.path};sha256:0l1v2mjy9ivhn9njfz2szzh7whr0vj02cysj0xhng9mdi3zfcnpa;120;${facts.references.join(',')}`,
    )
  })

  it('is taken from its key, and refused for anything else', () => {
    const key = CacheKey.ephemeral('here')
    const other = CacheKey.ephemeral('here')
    const signature = key.sign(facts)
    expect(signerOf(signature)).toBe(key.publicKey.name)
    expect(isSignedBy(key.publicKey, facts, signature)).toBe(true)
    expect(isSignedBy(other.publicKey, facts, signature)).toBe(false)
    expect(isSignedBy({ ...other.publicKey, name: key.publicKey.name }, facts, signature)).toBe(false)
    for (const altered of [
      { ...facts, path: `${facts.path}x` },
      { ...facts, narSize: 121 },
      { ...facts, narHash: 'f'.repeat(64) },
      { ...facts, references: facts.references.slice(1) },
    ]) {
      expect(isSignedBy(key.publicKey, altered, signature)).toBe(false)
    }
  })

  it('that is garbage is refused, whatever it is', () => {
    const key = CacheKey.ephemeral('here').publicKey
    fc.assert(
      fc.property(
        fc.string(),
        (text) => !isSignedBy(key, facts, text) && !isSignedBy(key, facts, `${key.name}:${text}`),
      ),
    )
  })
})

describe('a public key', () => {
  it('is read as it stands in nix.conf', () => {
    const text = 'cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY='
    expect(parsePublicKey(` ${text}\n`)).toMatchObject({ name: 'cache.nixos.org-1', text })
  })

  it.each([
    '',
    'x',
    ':',
    'name:',
    'name:AAAA',
    'na me:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=',
    `n:${'A'.repeat(86)}==`,
  ])('is refused when it is %j', (text) => {
    expect(() => parsePublicKey(text)).toThrow(/is not a public key/)
  })
})

describe('the cache key', () => {
  it('is made once, for its owner only, in a form that Nix reads', () => {
    const path = join(directory, 'cache-key')
    const made = CacheKey.loadOrMake(path, 'My Laptop!')
    expect(made.publicKey.name).toMatch(/^my-laptop-undernet-[0-9a-z]{8}$/)
    expect(statSync(path).mode & 0o777).toBe(0o600)
    const again = CacheKey.loadOrMake(path, 'renamed')
    expect(again.publicKey.text).toBe(made.publicKey.text)
    expect(isSignedBy(made.publicKey, facts, again.sign(facts))).toBe(true)
    const [name, secret] = readFileSync(path, 'utf8').trim().split(':')
    expect(name).toBe(made.publicKey.name)
    expect(Buffer.from(secret ?? '', 'base64').byteLength).toBe(64)
  })

  it.each(['', 'nonsense', 'name:AAAA', `name:${Buffer.alloc(64).toString('base64')}`])(
    'is refused when the file is %j',
    (text) => {
      const path = join(directory, 'broken')
      writeFileSync(path, text)
      expect(() => CacheKey.loadOrMake(path, 'x')).toThrow(/is not a secret key/)
      expect(readFileSync(path, 'utf8')).toBe(text)
    },
  )

  it('that cannot be read or made says so', () => {
    expect(() => CacheKey.loadOrMake(directory, 'x')).toThrow(/cannot be read/)
    expect(() => CacheKey.loadOrMake(join(directory, 'absent', 'key'), 'x')).toThrow(/cannot be written/)
  })
})
