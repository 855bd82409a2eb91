/** Logs and realisations beside the paths: kept as they were sent, and read where Nix has them. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { Receiver } from './cache.ts'
import { FakeNix } from './nix-database.ts'
import { PushedTo } from './push.ts'

const drv = `${'0sh8jlxsf1nb38r9cjfbkhzwax38zwgj'}-hello.drv`

it('serves the log of a build on this machine as Nix keeps it', async () => {
  const logDirectory = mkdtempSync(join(tmpdir(), 'undernet-logs-'))
  using nix = new FakeNix()
  await using here = new Receiver(nix.store, { logDirectory })
  expect((await here.server.inject(`/nix/log/${drv}`)).statusCode).toBe(404)
  const directory = join(logDirectory, 'drvs', drv.slice(0, 2))
  mkdirSync(directory, { recursive: true })
  writeFileSync(join(directory, drv.slice(2)), 'built\n')
  const plain = await here.server.inject(`/nix/log/${drv}`)
  expect([plain.statusCode, plain.body]).toEqual([200, 'built\n'])
  writeFileSync(join(directory, `${drv.slice(2)}.bz2`), 'BZh')
  const packed = await here.server.inject(`/nix/log/${drv}`)
  expect([packed.headers['content-encoding'], packed.body]).toEqual(['bzip2', 'BZh'])
  rmSync(logDirectory, { recursive: true })
})

it('keeps what was pushed, from those who may push', async () => {
  using nix = new FakeNix()
  await using here = new PushedTo(nix.store)
  const realisation = `/nix/realisations/sha256:${'ab'.repeat(32)}!out.doi`
  expect((await here.put(`/nix/log/${drv}`, 'built elsewhere', { 'content-encoding': 'br' })).statusCode).toBe(200)
  expect((await here.put(`/nix/in/home${realisation.slice(4)}`, '{}')).statusCode).toBe(200)
  here.refusal = 'not you'
  expect((await here.put(`/nix/log/${drv}`, 'other')).statusCode).toBe(403)
  const file = await here.sideFiles.open(`log/${drv}`, new AbortController().signal)
  expect(file?.encoding).toBe('br')
  const chunks: Uint8Array[] = []
  for await (const chunk of file?.bytes ?? []) chunks.push(chunk)
  expect(Buffer.concat(chunks).toString()).toBe('built elsewhere')
  const other = await here.sideFiles.open(realisation.slice(5), new AbortController().signal)
  expect(other).toBeDefined()
  for (const one of [file, other]) await one?.close()
})

it('knows no other names, and none that leads out', async () => {
  using nix = new FakeNix()
  await using here = new PushedTo(nix.store)
  for (const name of ['log/x', `log/../${drv}`, `log/${drv}/x`, `realisations/../../etc`, `log/${drv}\n`])
    expect(here.sideFiles.isName(name)).toBe(false)
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      const name = `log/${text}`
      if (here.sideFiles.isName(name)) expect(name).toMatch(/^log\/[0-9a-z]{32}-[^/]+\.drv$/)
    }),
  )
})
