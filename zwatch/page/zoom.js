// Zooming and moving what lies in the middle of an element: by a wheel and by two fingers

const MOST = 16; // times the size at which it fits

// `sizeOf()` is [width, height] of what is zoomed, `fromMiddle(x, y)` a point of the window from its middle; `draw(view)` shows it
export function createZoom(element, sizeOf, fromMiddle, draw) {
	const view = { scale: 1, x: 0, y: 0 };

	function place() {
		sizeOf().forEach((side, index) => {
			const most = ((view.scale - 1) * side) / 2;
			view["xy"[index]] = Math.min(most, Math.max(-most, view["xy"[index]]));
		});
		draw(view);
	}

	// The point at (x, y) from the middle stays where it is
	function to(wanted, [x, y] = [0, 0]) {
		const scale = Math.min(MOST, Math.max(1, wanted));
		const factor = scale / view.scale;
		Object.assign(view, { scale, x: x - (x - view.x) * factor, y: y - (y - view.y) * factor });
		place();
	}

	function move(x, y) {
		view.x += x;
		view.y += y;
		place();
	}

	// One finger goes from `last` to `now`
	function pinch(last, now, other) {
		const distance = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
		to((view.scale * distance(now)) / distance(last), fromMiddle((now.x + other.x) / 2, (now.y + other.y) / 2));
	}

	element.addEventListener("wheel", (event) => {
		event.preventDefault();
		to(view.scale * Math.exp(-event.deltaY / (event.deltaMode ? 12 : 300)), fromMiddle(event.clientX, event.clientY));
	}, { passive: false });
	new ResizeObserver(place).observe(element);
	return { view, to, move, pinch, place };
}
