# make demo   shows the main job on a lab of this machine's own
# make test   runs all tests
# make gitops asks Argo CD's and Flux's own code what they make of our objects
# make chart  writes the chart's copies of CRDs, admission policies and rules anew
# make bench  measures, as ratios in one run; ARGS=--quick for a tenth of it, ARGS=--json for machines
# make bench-gateway  measures the gateway, against straight connections to the same sshd; the same ARGS
# make lint   asks rustfmt, clippy and hadolint; make deny asks of licences, duplicates, sources and advisories
# make image  builds the program as it is released, says what is in it, and packs both, without a container engine
# make msrv   compiles everything with the oldest Rust that we say will do
.PHONY: demo test stand programs gitops bench bench-gateway build setup crds chart lint deny image msrv

# One feature set for every target: aws-sdk-ec2 takes minutes, and another set of features would compile it again.
CARGO_BUILD = cargo build --workspace --all-targets

setup:
	@tests/lab/setup.sh

build: setup programs

# Without make's own flags: cargo would share make's jobs instead of having its own.
programs:
	@tests/demo/needs-cargo.sh
	@echo "== building (the first time takes some minutes, most of them for the AWS SDK)"
	@env -u MAKEFLAGS -u MFLAGS $(CARGO_BUILD)

demo: build
	@tests/demo/demo.sh

# Go's programs and ours at once: a third of cargo's time is one crate's, on one core. Both need memory: below 12 GB free they
# take turns. What is missing of the machine is said before either begins.
test:
	@tests/lab/needs-go.sh
	@tests/demo/needs-cargo.sh
	@tests/lab/setup.sh --clients --packages
	@$(MAKE) --no-print-directory --jobs=$$(tests/lab/jobs.sh) stand programs
	@cargo test --workspace

stand:
	@tests/lab/setup-all.sh
	@$(MAKE) --no-print-directory gitops

# -count=1: the pages that are judged lie outside of Go's module, where its cache of results sees no change.
gitops:
	@tests/lab/needs-go.sh tests/gitops
	@cd tests/gitops && ../lab/go.sh test -count=1 ./...

bench: setup
	@cargo bench --bench grants -- $(ARGS)

# A thousand sessions have three thousand ends in here.
bench-gateway: setup
	@ulimit -n "$$(ulimit -Hn)" && cargo bench --bench gateway -- $(ARGS)

# What the chart has of elsewhere, and the table in its README.
chart:
	@UPDATE_CHART=1 cargo test --test chart -- the_charts_copies the_table_of_values

crds:
	@UPDATE_CRDS=1 cargo test --test api the_files_in_crds

lint:
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@PATH=$$(release/tools.sh hadolint):$$PATH hadolint Containerfile

# cargo-deny fetches the database of advisories; ARGS='bans licenses sources' asks without it.
deny:
	@PATH=$$(release/tools.sh cargo-deny):$$PATH cargo deny --locked check $(ARGS)
	@PATH=$$(release/tools.sh cargo-machete):$$PATH cargo machete --skip-target-dir

IMAGE = target/image
image:
	@release/build.sh $(IMAGE)/files
	@release/sbom.sh $(IMAGE)/files/usr/bin/instance-access $(IMAGE)/instance-access.cdx.json
	@release/image.sh $(IMAGE)/instance-access.tar $$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')=$(IMAGE)/files

msrv:
	@version=$$(sed -nE 's/^rust-version = "([0-9.]+)".*/\1/p' Cargo.toml); rustup toolchain install --profile minimal --no-self-update $$version \
	  && CARGO_TARGET_DIR=target/msrv cargo +$$version check --locked --workspace --all-targets
