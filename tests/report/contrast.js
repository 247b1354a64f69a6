// Words with a contrast below 4.5 : 1 (WCAG 2.2, 1.4.3), from an element's colour and what lies behind it.
(() => {
    const painted = (colour) => {
        const canvas = document.createElement('canvas').getContext('2d');
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const over = ([r, g, b, a], below) => [r, g, b].map((part, i) => (part * a + below[i] * (255 - a)) / 255);
    const behind = (element) => {
        if (!element) return painted(getComputedStyle(document.documentElement).getPropertyValue('--page')).slice(0, 3);
        const colour = painted(getComputedStyle(element).backgroundColor);
        return colour[3] === 255 ? colour.slice(0, 3) : over(colour, behind(element.parentElement));
    };
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const light = (rgb) => {
        const [r, g, b] = rgb.map((part) => linear(part / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const faint = [];
    for (const element of document.querySelectorAll('main *')) {
        const texts = [...element.childNodes].filter((node) => node.nodeType === 3 && node.data.trim());
        if (!texts.length || !element.checkVisibility({ visibilityProperty: true })) continue;
        if (element.closest('svg, :disabled')) continue;
        const ground = behind(element);
        const { color } = getComputedStyle(element);
        const [one, other] = [light(over(painted(color), ground)), light(ground)].sort((a, b) => b - a);
        if ((one + 0.05) / (other + 0.05) < 4.5) faint.push(`${texts[0].data.trim()}: ${color} on ${ground}`);
    }
    return faint;
})()
