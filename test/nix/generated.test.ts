/** What is made from the code and kept in the repository is what the code says today. */
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { generated } from '../../nix/generated.ts'
import { lockDigest, recordedHashes } from '../../nix/node-modules.ts'
import { posixPattern } from '../../nix/options.ts'

describe('files made from the code', () => {
  it.each([...generated])('%s is up to date (else: npm run reference)', (file, make) => {
    expect(readFileSync(file, 'utf8')).toBe(make())
  })

  it('nix/node-modules.json is of this package-lock.json (else: npm run node-modules)', () => {
    expect(recordedHashes().lock).toBe(lockDigest())
  })

  it('the package of Nix carries what is left out of the bundle', () => {
    const [, externals = ''] = /external: \[([^\]]*)\]/.exec(readFileSync('nix/build.ts', 'utf8')) ?? []
    const names = [...externals.matchAll(/'([^']+)'/g)].map(([, name]) => name)
    expect(names).toContain('koffi')
    const [, carried = ''] = /for package in (.*); do/.exec(readFileSync('nix/package.nix', 'utf8')) ?? []
    for (const name of names) expect(carried.split(' ')).toContain(name)
  })
})

describe('a pattern of JavaScript for Nix', () => {
  it.each([
    [/^a\/(?:b|c)\d+$/, 'a/(b|c)[0-9]+'],
    [/^[^\s:]+\.\S*\s?$/, '[^[:space:]:]+\\.[^[:space:]]*[[:space:]]?'],
    [/^\[[\d:]{1,3}\]$/s, '\\[[0-9:]{1,3}]'],
  ])('%s is %s', (pattern, posix) => expect(posixPattern(pattern)).toBe(posix))

  it.each([/a/, /^a\$/, /^a$/i, /^(?=a)$/, /^\w$/, /^\b$/, /^[\]]$/, /^[a\-z]$/, /^(a)\1$/])(
    '%s is refused',
    (pattern) => expect(() => posixPattern(pattern)).toThrow('not the same in Nix'),
  )
})
