/**
 * Who signs for a network: members are believed by its policy, and by no key that anybody adds by hand; how many have to sign; and what a
 * refusal says. Real agents, real Nix.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { ArtifactDetail, SearchResult } from '../../agent/api/contract.ts'
import { type RealAgent, until } from '../agents.ts'
import { invite, joinWith, Lab, says } from '../cluster/members.ts'
import { takeFrom } from '../network.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

const GRANTS = '[[grants]]\nfrom = "*"\nto = "*"\nallow = ["content:fetch", "content:publish"]\n'
const SIGNING = `${GRANTS}\n[[grants]]\nfrom = "name:ci"\nto = "*"\nallow = ["content:sign"]\n`

describe.skipIf(!hasNix)('signatures in a network', () => {
  let lab: Lab
  let ci: RealAgent
  let laptop: RealAgent
  let closure: NixClosure
  beforeAll(async () => {
    lab = await Lab.open()
    ci = await lab.start({ name: 'ci', flags: ['--no-open'] })
    laptop = await lab.start({ name: 'laptop', flags: ['--no-open'], bootstrap: [await ci.address()] })
    await says(ci, 'network', 'create', 'home')
    await joinWith(laptop, await invite(ci))
    closure = await NixClosure.make({ paths: 3 })
    await ci.json('publish', closure.root, '--name', 'app')
    await until(async () => (await laptop.json<SearchResult>('search', 'app')).artifacts.length > 0, {
      what: 'it is known',
    })
  })
  afterAll(async () => {
    await closure?.[Symbol.asyncDispose]()
    await lab?.[Symbol.asyncDispose]()
  })

  const shown = () => laptop.json<ArtifactDetail>('show', 'app')

  async function installs(): Promise<boolean> {
    await using store = await SecondStore.make()
    return (await store.realise(closure.root, await takeFrom(laptop))).ok
  }

  it('are believed when the policy says so, and no longer when it does not', async () => {
    expect(await installs()).toBe(false)
    const before = await shown()
    expect(before.signerTrusted).toBe(false)
    expect(before.refused).toContain(`signed by ${before.signer?.split(':')[0]}, which this agent does not trust`)
    expect(before.refused).toContain('it needs a signature that this agent trusts')
    const { warnings } = await laptop.status()
    expect(warnings.some(({ message }) => message.includes('which this agent does not trust'))).toBe(true)
    await says(ci, 'policy', 'set', lab.file('signing.toml', SIGNING))
    await until(async () => (await shown()).refused === undefined, { what: 'the policy is known' })
    expect((await shown()).signerTrusted).toBe(true)
    expect(await installs()).toBe(true)
    await says(ci, 'policy', 'set', lab.file('grants.toml', GRANTS))
    await until(async () => (await shown()).refused !== undefined, { what: 'the policy is known' })
    expect(await installs()).toBe(false)
  })

  it('are as many as the configuration requires', async () => {
    await says(ci, 'policy', 'set', lab.file('again.toml', SIGNING))
    laptop = await lab.restart(laptop, { flags: ['--no-open', '--require-signatures', '2'] })
    await until(async () => (await shown().catch(() => undefined))?.refused, { what: 'it is refused', ms: 30_000 })
    expect((await shown()).refused).toContain('which this agent trusts; it needs signatures of 2 different keys')
    expect(await installs()).toBe(false)
  })
})
