/** Which names are private: by patterns, and by those that hold when nobody says any. */
import { expect, it } from 'vitest'
import { loadConfig } from '../../../agent/config/config.ts'
import { nameOf, StoreRules } from '../../../agent/nix/store-rules.ts'

const HASH = '0'.repeat(32)

it('takes * for any text and ? for any character, whatever the case, and all else as it is', () => {
  const rules = new StoreRules(['*-secret', 'a?c', 'x+y.z'])
  const names = ['my-secret', 'MY-SECRET', 'secret', 'my-secrets', 'abc', 'ac', 'abbc', 'x+y.z', 'xxy.z', 'x+yaz']
  expect(names.filter((name) => rules.isPrivate(name))).toEqual(['my-secret', 'MY-SECRET', 'abc', 'x+y.z'])
  expect(new StoreRules([]).isPrivate('secret')).toBe(false)
})

it('looks at names, not at hashes or directories', () => {
  expect(nameOf(`/nix/store/${HASH}-a-name-1.0`)).toBe('a-name-1.0')
  expect(nameOf(`${HASH}-a-name-1.0`)).toBe('a-name-1.0')
  expect(new StoreRules(['secret*']).isPrivatePath(`/secret/store/${HASH}-hello`)).toBe(false)
})

it('keeps what looks like a secret, and derivations, when nobody says otherwise', () => {
  const rules = new StoreRules(loadConfig({ env: {}, flags: {} }).values.privatePaths)
  const kept = [
    'hello.drv',
    'secrets',
    'team-secrets',
    'my-secret-file',
    'secrets.nix',
    'db-password',
    'wg-private-key',
    'tls.key',
  ]
  const given = [
    'hello-2.12',
    'libsecret-0.21',
    'python3.12-secretstorage-3.3',
    'password-store-1.7',
    'keyutils-1.6',
    'glibc',
  ]
  expect(kept.filter((name) => !rules.isPrivate(name))).toEqual([])
  expect(given.filter((name) => rules.isPrivate(name))).toEqual(['password-store-1.7'])
})
